"""The build of the shipped model on treebanks that the tests make: what it reads, what it leaves out, its bytes."""

from __future__ import annotations

import hashlib
import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cws_multidomain import Segmenter, Sentence
from cws_multidomain.model_build import DOMAINS, SOURCES, build, prepare, read_variants

SMALL = {"epochs": 2, "max_bytes": 100_000}
NAMES = ("马", "龙", "国")


def conllu(sentences: list[list[str]], *, tags: bool = True) -> str:
    def row(i: int, word: str) -> str:
        return f"{i}\t{word}\t{word}\tNOUN\t{'NN' if tags else '_'}\t_\t0\tdep\t_\tSpaceAfter=No"

    return "\n\n".join("\n".join(row(i, word) for i, word in enumerate(words, 1)) for words in sentences) + "\n\n"


def conllx(sentences: list[list[str]]) -> str:
    def row(i: int, word: str) -> str:
        return f"{i}\t{word}\t_\tNOUN\t{'.' if word == '.' else 'NN'}\t_\t0\tdep\t_\t_"

    return "\n\n".join("\n".join(row(i, word) for i, word in enumerate(words, 1)) for words in sentences) + "\n\n"


def sentences(mark: str, count: int) -> list[list[str]]:
    return [[mark + "子", f"{NAMES[i % 3]}头", "在", f"{chr(0x5000 + i)}上", "."] for i in range(count)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "ud"
    folder.mkdir()
    for name, source in SOURCES.items():
        if name in DOMAINS or name == "gsdsimp":
            for number, file in enumerate(source.files):
                made = sentences({"gsd": "天", "pud": "馬", "hk": "龍", "cfl": "人"}.get(name, f"水{number}"), 40)

                text = conllx(made) if name == "gsd" else conllu(made)
                (folder / file).write_bytes(lzma.compress(text.encode()))
    (folder / "udc_test.conll.xz").write_bytes(b"never to be read")
    (folder / "udc_dev.conll.xz").write_bytes(b"never to be read")
    (tmp_path / "dict.txt").write_text("马头 30 n\n龙头 20 n\n天子 10 n\n着 5 uz\n", encoding="utf-8")
    (tmp_path / "TSCharacters.txt").write_text("馬\t马\n龍\t龙\n乾\t干 乾\n", encoding="utf-8")
    return folder


def options(data: Path) -> dict[str, Any]:
    return {"dictionary": data.parent / "dict.txt", "characters": data.parent / "TSCharacters.txt"}


def test_the_model_and_its_manifest_are_built(data: Path, tmp_path: Path) -> None:
    manifest = build(data, tmp_path / "made.cws", **options(data), **SMALL)
    segmenter = Segmenter.load(tmp_path / "made.cws")
    assert segmenter.domains == ("general", "wiki", "news", "spoken", "learner")
    assert segmenter.tokenize("天子在")[0].pos == "NN"
    assert "".join(segmenter.with_domain("news").cut("馬頭在")) == "馬頭在"
    assert segmenter.dictionary()["马头"] == 30
    written = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(manifest))
    assert [source["name"] for source in written["sources"]] == list(SOURCES)
    for source in written["sources"]:
        assert source["licence"]
        assert source["attribution"]
        assert all(len(checksum) == 64 for checksum in source["sha256"].values())
    file = data / "udc_train.conll.xz"
    assert written["sources"][0]["sha256"][file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert written["model"]["sha256"] == hashlib.sha256((tmp_path / "made.cws").read_bytes()).hexdigest()
    assert segmenter.info["sources"] == written["sources"]


def test_the_same_sources_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build(data, tmp_path / name / "made.cws", **options(data), **SMALL)
    assert (tmp_path / "a" / "made.cws").read_bytes() == (tmp_path / "b" / "made.cws").read_bytes()


def test_both_scripts_have_the_same_weights(data: Path, tmp_path: Path) -> None:
    build(data, tmp_path / "made.cws", **options(data), **SMALL)
    segmenter = Segmenter.load(tmp_path / "made.cws", domain="news")
    simplified, traditional = segmenter.cut("马子龙头在马上"), segmenter.cut("馬子龍头在馬上")
    assert [len(word) for word in simplified] == [len(word) for word in traditional]


def test_the_build_opens_no_data_but_that_of_the_manifest(data: Path, tmp_path: Path) -> None:
    """What a fresh process opens outside of Python and its packages, by its audit events."""
    code = f"""
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
from pathlib import Path
from cws_multidomain.model_build import build
build({str(data)!r}, {str(tmp_path / "made.cws")!r}, dictionary={str(tmp_path / "dict.txt")!r},
      characters={str(tmp_path / "TSCharacters.txt")!r}, epochs=1, max_bytes=100_000)
places = {{str(Path(path).resolve()) for path in opened if isinstance(path, (str, bytes)) and str(path)}}
print("\\n".join(sorted(p for p in places if p.startswith({str(tmp_path.resolve())!r}))))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    named = {file for source in SOURCES.values() for file in source.files}
    opened = {Path(line) for line in run.stdout.split("\n") if line}
    data_files = {path.name for path in opened if path.parent == data.resolve()}
    assert data_files == {file for file in named if file.endswith(".xz")}
    others = {path.name for path in opened if path.parent != data.resolve()}
    temporary = {name for name in others if name.startswith((".made.cws.", ".manifest.json."))}
    assert others - temporary == {"dict.txt", "TSCharacters.txt", "made.cws"}


def test_treebanks_can_be_left_out(data: Path, tmp_path: Path) -> None:
    (data / "udc_train.conll.xz").unlink()
    manifest = build(data, tmp_path / "made.cws", ["gsd"], **options(data), **SMALL)
    assert Segmenter.load(tmp_path / "made.cws").domains == ("general", "news", "spoken", "learner")
    assert "gsd" not in [source["name"] for source in manifest["sources"]]


def test_held_out_sentences_are_never_trained_on(data: Path) -> None:
    prepared = prepare(data)
    held = {"".join(s.words) for part in (prepared.dev, *prepared.held_out.values()) for s in part}
    for part in prepared.train.values():
        assert not {"".join(sentence.words) for sentence in part} & held
    whole = prepared.train["gsd"]
    assert whole
    assert all(sentence.words[-1] == "。" for sentence in whole)  # the full stop of the first export


def test_a_character_has_the_first_of_its_simplified_forms(data: Path) -> None:
    variants = read_variants(data.parent / "TSCharacters.txt")
    assert variants == {"馬": "马", "龍": "龙", "乾": "干", "著": "着"}


def test_missing_sources_are_all_named(data: Path, tmp_path: Path) -> None:
    (data / "udc_train.conll.xz").unlink()
    (data / "HK_zh_hk-ud-test.conllu.xz").unlink()
    with pytest.raises(FileNotFoundError, match=r"udc_train\.conll\.xz.*HK_zh_hk-ud-test\.conllu\.xz"):
        build(data, tmp_path / "made.cws", **options(data))
    assert not (tmp_path / "made.cws").exists()


def test_bad_names_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without must be among gsd, pud, hk, cfl, got 'msr'"):
        build(data, tmp_path / "made.cws", ["msr"], **options(data))
    with pytest.raises(ValueError, match="without must leave a treebank to train on"):
        build(data, tmp_path / "made.cws", list(DOMAINS), **options(data))


def test_words_that_were_apart_in_the_text_are_apart_in_training() -> None:
    from cws_multidomain.model_build import _spaced

    assert _spaced(Sentence(["New", "York", "很", "大"])).spaces == (True, False, False, False)
