"""The model inside the package: what it holds, what it costs, how well it cuts text that it was not trained on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from cws_multidomain import Segmenter, Sentence, evaluate

MODEL = files("cws_multidomain") / "model"
DATA = Path(__file__).parents[4] / "shared" / "data" / "cws" / "ud"
# F1 in the domain that the model card states, less a tenth of a point.
STATED = {"gsd": ("wiki", 0.954), "pud": ("news", 0.953), "hk": ("spoken", 0.940), "cfl": ("learner", 0.940)}


def test_the_model_is_small_and_says_where_it_is_from() -> None:
    assert (MODEL / "default.cws").stat().st_size <= 6_000_000  # type: ignore[attr-defined]
    manifest = json.loads((MODEL / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["sha256"] == hashlib.sha256((MODEL / "default.cws").read_bytes()).hexdigest()
    segmenter = Segmenter.load()
    assert segmenter.info["sources"] == manifest["sources"]
    assert segmenter.info["licence"] == "CC BY-SA 4.0"
    gsd = next(source for source in manifest["sources"] if source["name"] == "gsd")
    assert 'Google gave permission to drop the "NC" restriction from the license' in gsd["note"]
    card = (MODEL / "MODEL_CARD.md").read_text(encoding="utf-8")
    for source in manifest["sources"]:
        assert source["attribution"]
        assert source["name"] in card.lower()


def test_no_research_corpus_is_a_source() -> None:
    manifest = (MODEL / "manifest.json").read_text(encoding="utf-8").lower()
    assert not [name for name in ("sighan", "msr", "icwb", "sxu", "zhuxian", "weibo", "ctb") if name in manifest]


def test_domains_disagree_and_the_gate_decides() -> None:
    segmenter = Segmenter.load()
    assert segmenter.domains == ("general", "wiki", "news", "spoken", "learner")
    text = "但是我不知道你昨天为什么没有来学校，老师们都很担心你的情况。"
    cuts = {tuple(segmenter.with_domain(domain).cut(text)) for domain in segmenter.domains}
    assert len(cuts) > 1
    gate = segmenter.gate("你在找些什麼？我不知道啊。你快點過來吧，他們都在等你呢！")
    assert max(gate, key=gate.__getitem__) == "spoken"


def test_traditional_and_simplified_text_are_cut_alike() -> None:
    segmenter = Segmenter.load()
    simplified, traditional = "我们国家的经济发展很快", "我們國家的經濟發展很快"
    assert list(map(len, segmenter.cut(simplified))) == list(map(len, segmenter.cut(traditional)))


def test_loading_takes_less_than_forty_megabytes_beyond_numpy() -> None:
    code = """
import numpy, resource, gc
def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
import cws_multidomain
before = resident()
segmenter = cws_multidomain.Segmenter.load()
segmenter.cut_many(["我们国家的经济发展很快。" * 20] * 50, threads=1)
print((resident() - before) / 1024)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell how much memory is resident")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 40


@pytest.mark.skipif(not DATA.is_dir(), reason="the treebanks are not beside the repository")
@pytest.mark.parametrize("name", STATED)
def test_the_card_states_what_the_model_does(name: str) -> None:
    from cws_multidomain.model_build import prepare

    domain, stated = STATED[name]
    gold = [Sentence(sentence.words) for sentence in prepare(DATA).held_out[name]]
    segmenter = Segmenter.load(domain=domain)
    assert evaluate(gold, segmenter.cut_many([sentence.text for sentence in gold])).f1 > stated


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the treebanks are not beside the repository")
def test_the_model_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    from cws_multidomain.model_build import build

    pytest.importorskip("opencc", reason="the build needs OpenCC's table")
    build(DATA, tmp_path / "default.cws")
    assert (tmp_path / "default.cws").read_bytes() == (MODEL / "default.cws").read_bytes()
