"""Bulk scoring on a device: the very tokens of the engine in C++."""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="there is no PyTorch here")
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from cws_multidomain import _reference, gpu  # noqa: E402
from cws_multidomain._weights import Component, Gate, Weights  # noqa: E402
from cws_multidomain.gpu import _scoring  # noqa: E402
from cws_multidomain.segmenter import Segmenter  # noqa: E402

DEVICE = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
CHARACTERS = "中国人民大学生的是在了和有我他这不们到说要就去看好𠮷"
OTHERS = [
    "國",
    "12,345.6",
    "３．１４",
    "ABC",
    "ａｂ",
    "http://a.cn/x?y=1",
    "me@mail.cn",
    "👩\u200d🚀",
    "🇨🇳",
    "é",
    "\ud800",
    "龘",
    "。",
]


def model(seed: int, *, domains: int = 0, lexicons: int = 1, skip: bool = False, gate: bool = False) -> Segmenter:
    """Random weights, of which small ones make ties after rounding."""
    rng = np.random.default_rng(seed)
    symbols = {ord(c): 5 + i for i, c in enumerate(CHARACTERS)} | {ord("國"): 6}
    n = 5 + len(CHARACTERS)
    pairs = [a << 16 | b for a, b in itertools.product(range(1, n), range(1, n)) if rng.random() < 0.5]
    marked = [m << 16 | s for m in range(125) for s in range(3, n) if rng.random() < 0.3]

    def some(keys: list[int], part: float) -> Any:
        return np.array([key for key in keys if rng.random() < part], np.uint32)

    def rows(*shape: int) -> Any:
        return np.round(rng.normal(size=shape) * 3).astype(np.float32) / 3

    def component(part: float) -> Component:
        bigram, skips = some(pairs, part), some(pairs if skip else [], part)
        charmarks = [some(marked, part) for _ in range(lexicons)]
        unigram = rows(n, 5, 4)
        unigram[0] = 0
        return Component(
            unigram,
            bigram,
            rows(len(bigram), 4, 4),
            skips,
            rows(len(skips), 4),
            [rows(5, 125, 5, 4) for _ in range(lexicons)],
            charmarks,
            [rows(len(keys), 4) for keys in charmarks],
            rows(4, 4),
        )

    words = [
        {"".join(rng.choice(list(CHARACTERS), rng.integers(1, 8))): 1 for _ in range(150)} for _ in range(lexicons)
    ]
    shared = component(1.0)
    parts = []
    for _ in range(domains):
        part = component(0.6)
        keep = np.isin(part.bigram_keys, shared.bigram_keys)
        part.bigram_keys, part.bigram = part.bigram_keys[keep], part.bigram[keep]
        keep = np.isin(part.skip_keys, shared.skip_keys)
        part.skip_keys, part.skip = part.skip_keys[keep], part.skip[keep]
        for k, keys in enumerate(part.charmark_keys):
            keep = np.isin(keys, shared.charmark_keys[k])
            part.charmark_keys[k], part.charmark[k] = keys[keep], part.charmark[k][keep]
        parts.append(part)
    names = [f"domain{k}" for k in range(1, domains + 1)]
    made = (
        Gate(rng.normal(size=(8192, domains)).astype(np.float32) * 9, np.zeros(domains, np.float32)) if gate else None
    )
    return Segmenter.from_weights(Weights(symbols, [list(w.items()) for w in words], [shared, *parts], names, made))


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    out = ["", " ", "\n\n", "中", "中 国", " 中国\u3000人民\n大学生\r\n的"]
    for _ in range(count):
        parts = [
            rng.choice(CHARACTERS) if rng.random() < 0.9 else rng.choice(OTHERS) for _ in range(rng.randrange(1, 40))
        ]
        out.append("".join(part + (rng.choice([" ", "\n", "\u2003"]) if rng.random() < 0.05 else "") for part in parts))
    return out


def needs(device: str) -> None:
    if device == "cuda" and (not torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1"):
        pytest.skip("this needs a CUDA device and TRITON_INTERPRET=0")


@DEVICE
@pytest.mark.parametrize(
    ("options", "domain"),
    [
        ({"lexicons": 0}, "auto"),
        ({}, "general"),
        ({"lexicons": 2, "skip": True, "domains": 3}, "domain2"),
        ({"lexicons": 2, "domains": 3}, {"domain1": 0.3, "domain3": 0.9}),
        ({"domains": 1}, {"domain1": 0.37}),
        ({"lexicons": 1, "domains": 3, "gate": True, "skip": True}, "auto"),
    ],
    ids=["n-grams", "lexicon", "domain", "mixture", "part", "gate"],
)
def test_tokens_are_those_of_the_engine(device, options, domain):
    needs(device)
    given = texts(120)
    for seed in range(2):
        segmenter = model(seed, **options).with_domain(domain)
        assert gpu.cut_many(segmenter, given, device=device) == segmenter.cut_many(given)


@DEVICE
def test_rules_can_be_switched_off(device):
    needs(device)
    segmenter = model(1)
    for rules in ((), ("latin",), ("url", "number"), ("grapheme", "email")):
        segmenter.rules = rules
        assert gpu.cut_many(segmenter, texts(50, 2), device=device) == segmenter.cut_many(texts(50, 2))


@DEVICE
def test_the_gate_decides_by_lines_and_by_their_first_4096_symbols(device):
    needs(device)
    segmenter, rng = model(2, domains=3, gate=True), random.Random(0)
    given = ["".join(rng.choices(CHARACTERS + " ", k=k)) for k in (4095, 4097)]
    given.append("\n".join(texts(60, 3)))
    chosen = {max(probabilities, key=probabilities.get) for probabilities in map(segmenter.gate, texts(60, 3)[3:])}
    assert len(chosen) > 1
    assert gpu.cut_many(segmenter, given, device=device) == segmenter.cut_many(given)


@DEVICE
def test_batches_do_not_change_tokens(device):
    needs(device)
    segmenter, given = model(3), texts(60, 4)
    assert gpu.cut_many(segmenter, given, device=device, characters=50) == segmenter.cut_many(given)


@DEVICE
def test_a_long_line(device):
    needs(device)
    text = "".join(random.Random(1).choices(CHARACTERS, k=2500 if device == "cpu" else 1_000_000))
    segmenter = model(4)
    assert gpu.cut_many(segmenter, [text, "中国"], device=device) == segmenter.cut_many([text, "中国"])


def test_interpreted_kernels_cut_as_the_engine_cuts(monkeypatch):
    pytest.importorskip("triton", reason="there is no Triton here")
    if os.environ["TRITON_INTERPRET"] != "1":
        pytest.skip("Triton is compiled here, not interpreted")
    from cws_multidomain.gpu import _triton

    monkeypatch.setattr(_scoring, "_ops", _triton)
    segmenter, given = model(5, lexicons=2, domains=2, skip=True).with_domain("domain1"), texts(12, 5)
    with np.errstate(all="ignore"):
        assert gpu.cut_many(segmenter, given, device="cpu") == segmenter.cut_many(given)


def test_marks_are_those_of_the_reference():
    rng = np.random.default_rng(0)
    words = sorted({tuple(rng.integers(5, 9, rng.integers(1, 9)).tolist()) for _ in range(60)})
    flat, splits = np.concatenate(words).astype(np.uint16), np.concatenate([[0], np.cumsum([len(w) for w in words])])
    lexicon = _scoring.Lexicon(flat, splits.astype(np.int64), torch.device("cpu"))
    sentences = [rng.integers(4, 9, n) for n in rng.integers(1, 30, 50)]
    end = np.repeat(np.cumsum([len(s) for s in sentences]), [len(s) for s in sentences])
    begins, ends, insides = lexicon.marks(torch.from_numpy(np.concatenate(sentences)), torch.from_numpy(end))
    expected = np.concatenate([_reference.marks(s, set(words)) for s in sentences])
    assert (25 * begins + 5 * ends + insides).tolist() == expected.tolist()


def test_buckets_hold_every_sentence_once_and_little_padding():
    lengths = np.random.default_rng(0).geometric(0.02, 5000)
    found = list(_scoring.buckets(lengths, np.arange(5000)))
    assert sorted(np.concatenate(found).tolist()) == list(range(5000))
    assert all(lengths[b].max() <= 2 * lengths[b].min() + 1 for b in found)
    assert len(found) < 20


def test_what_a_device_cannot_do_is_refused():
    segmenter = model(6)
    segmenter.add_words(["中国"])
    with pytest.raises(ValueError, match="must have no words of the user"):
        gpu.cut_many(segmenter, ["中国"], device="cpu")
    segmenter = model(6)
    segmenter.granularity = "search"
    with pytest.raises(ValueError, match="granularity coarse"):
        gpu.cut_many(segmenter, ["中国"], device="cpu")
    with pytest.raises(TypeError, match="bytes at index 1"):
        gpu.cut_many(model(6), ["中国", b""], device="cpu")  # type: ignore[list-item]
    with pytest.raises(ValueError, match="characters must be an integer of at least 1, got 0"):
        gpu.cut_many(model(6), ["中国"], device="cpu", characters=0)
