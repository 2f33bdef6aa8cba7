"""Invariants on whatever text hypothesis thinks of."""

import numpy as np
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from cws_multidomain import Segmenter

PIECES = [
    *["http://a.cn/x?y=1.", "www.b.c", "me@x.cn", "3.14", "1,2", "👨‍👩‍👧", "🇨🇳", "e\u0301", "\r\n", "ＡＢ", "क्त", "각"],
    *synthetic.CHARACTERS,
]
TEXT = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(PIECES)), max_size=20).map("".join)
WORDS = st.dictionaries(
    st.text(list(synthetic.CHARACTERS[:6]), min_size=2, max_size=5),
    st.one_of(st.floats(-9, 9, width=32), st.sampled_from(["force", "forbid"])),
    max_size=8,
)


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_weights(synthetic.weights(4, domains=2, gate=True, size=0.6))


@given(text=TEXT, words=WORDS, granularity=st.sampled_from(["coarse", "fine"]))
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost_in_any_unit(segmenter, text, words, granularity):
    segmenter = segmenter.with_domain("auto")
    segmenter.add_words(words)
    segmenter.granularity = granularity
    tokens = segmenter.cut(text)
    assert "".join(tokens) == "".join(text.split())
    for unit, encoding in (("char", "utf-32-le"), ("byte", "utf-8"), ("utf16", "utf-16-le")):
        if unit == "byte" and any(0xD800 <= ord(c) < 0xE000 for c in text):
            continue
        width = {"char": 4, "byte": 1, "utf16": 2}[unit]
        coded = text.encode(encoding, "surrogatepass")
        offsets = segmenter.offsets([text], unit)
        parts = [coded[width * a : width * b] for a, b in offsets[0]]
        assert [p.decode(encoding, "surrogatepass") for p in parts] == tokens
        gaps = [
            coded[width * a : width * b].decode(encoding, "surrogatepass")
            for a, b in zip([0, *offsets.ends.tolist()], [*offsets.starts.tolist(), len(coded) // width], strict=True)
        ]
        assert all(g == "" or g.isspace() for g in gaps)


@given(a=TEXT, b=TEXT, words=WORDS)
@settings(max_examples=200, deadline=None)
def test_lines_are_independent(segmenter, a, b, words):
    segmenter = segmenter.with_domain("auto")
    segmenter.add_words(words)
    assert segmenter.cut(f"{a}\n{b}") == segmenter.cut(a) + segmenter.cut(b)
    assert segmenter.cut_many([a, b], threads=2) == [segmenter.cut(a), segmenter.cut(b)]


@given(text=TEXT, words=WORDS)
@settings(max_examples=200, deadline=None)
def test_the_first_of_n_is_the_cut_and_sums_are_one(segmenter, text, words):
    segmenter = segmenter.with_domain("domain1")
    segmenter.add_words(words)
    best = segmenter.nbest(text, 3)
    assert best[0][0] == segmenter.cut(text)
    assert all("".join(tokens) == "".join(text.split()) for tokens, _ in best)
    p = segmenter.probabilities(text)
    assert ((p >= 0) & (p <= 1)).all()
    assert [x.position for x in segmenter.explain(text)] == [i for i, c in enumerate(text) if not c.isspace()]
    space = np.array([c.isspace() for c in text], bool)
    assert (p[space] == 0).all()


@given(data=st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_bytes_are_utf8_or_refused(segmenter, data):
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(ValueError, match=f"at byte {error.start}$"):
            segmenter.offsets_utf8(data)
    else:
        offsets = segmenter.offsets_utf8(data)
        lines = text.split("\n")
        assert offsets == segmenter.offsets(lines if lines[-1] else lines[:-1], "byte")
