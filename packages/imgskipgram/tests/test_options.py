"""The options: each bad value is refused by a sentence that names argument, rule and value, before any work."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgskipgram import ImageSkipGram
from imgskipgram._options import Options

POSITIVE = ("vector_size", "window", "negative", "epochs", "workers", "image_negative")
OTHERS = ("max_vocab_size", "max_final_vocab")


@pytest.mark.parametrize("name", POSITIVE + OTHERS)
@pytest.mark.parametrize("value", [0, -1])
def test_an_integer_below_one_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a positive integer, got {value}$"):
        ImageSkipGram(**{name: value})


@pytest.mark.parametrize("name", ["min_count", "seed"])
def test_an_integer_below_zero_is_refused_where_zero_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a non-negative integer, got -1$"):
        ImageSkipGram(**{name: -1})
    ImageSkipGram(**{name: 0})


@pytest.mark.parametrize("name", [*POSITIVE, *OTHERS, "min_count", "seed"])
@pytest.mark.parametrize("value", [True, 1.0, "1", np.float32(2)])
def test_what_is_no_integer_is_refused(name: str, value: Any) -> None:
    rule = "non-negative" if name in ("min_count", "seed") else "positive"
    with pytest.raises(TypeError, match=rf"^{name} must be a {rule} integer, got {re.escape(repr(value))}$"):
        ImageSkipGram(**{name: value})


@pytest.mark.parametrize(
    ("name", "most"), [("window", 16_382), ("negative", 16_383), ("image_negative", 16_383), ("seed", 2**64 - 1)]
)
def test_the_counters_of_samples_hold_all_that_is_allowed(name: str, most: int) -> None:
    assert getattr(ImageSkipGram(**{name: most}), name) == most
    with pytest.raises(ValueError, match=rf"^{name} must be at most {most}, got {most + 1}$"):
        ImageSkipGram(**{name: most + 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 1}, r"^sample must be at least 0 and less than 1, got 1\.0$"),
        ({"sample": -1e-9}, r"^sample must be at least 0 and less than 1, got -1e-09$"),
        ({"sample": math.nan}, r"^sample must be at least 0 and less than 1, got nan$"),
        ({"alpha": 0}, r"^alpha must be positive and finite, got 0\.0$"),
        ({"alpha": -0.1}, r"^alpha must be positive and finite, got -0\.1$"),
        ({"alpha": math.inf}, r"^alpha must be positive and finite, got inf$"),
        ({"alpha": 10**400}, r"^alpha must be finite, got 10+$"),
        ({"alpha": math.nan}, r"^alpha must be positive and finite, got nan$"),
        ({"min_alpha": 0.03}, r"^min_alpha must be non-negative and at most alpha=0\.025, got 0\.03$"),
        ({"min_alpha": -1}, r"^min_alpha must be non-negative and at most alpha=0\.025, got -1\.0$"),
        ({"min_alpha": math.nan}, r"^min_alpha must be non-negative and at most alpha=0\.025, got nan$"),
        ({"image_weight": -1}, r"^image_weight must be non-negative and finite, got -1\.0$"),
        ({"image_weight": math.nan}, r"^image_weight must be non-negative and finite, got nan$"),
        ({"ns_exponent": math.inf}, r"^ns_exponent must be finite, got inf$"),
        ({"objective": "cbow"}, r"^objective must be 'nce', 'margin', 'infonce' or 'none', got 'cbow'$"),
        ({"objective": None}, r"^objective must be 'nce', 'margin', 'infonce' or 'none', got None$"),
        ({"projection": "linear"}, r"^projection must be 'shared', 'fixed' or 'free', got 'linear'$"),
        ({"negatives": "none"}, r"^negatives must be 'center', 'batch' or 'pair', got 'none'$"),
        ({"dtype": np.float32}, r"^dtype must be 'float32', 'float64' or 'bfloat16', got <class"),
        ({"device": "tpu"}, r"^device must be 'cpu' or 'cuda', got 'tpu'$"),
        ({"deterministic": 2}, r"^deterministic must be True or False, got 2$"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_bad_value_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSkipGram(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "fast"}, r"^alpha must be a number, got 'fast'$"),
        ({"sample": True}, r"^sample must be a number, got True$"),
        ({"image_weight": None}, r"^image_weight must be a number, got None$"),
        ({"deterministic": "yes"}, r"^deterministic must be True or False, got 'yes'$"),
        ({"trim_rule": 5}, r"^trim_rule must be callable or None, got int$"),
        ({"callbacks": 5}, r"^callbacks must be a sequence of objects with on_train_begin, .*, got 5$"),
        (
            {"callbacks": [print], "workers": 1},
            r"^callbacks must have one of on_train_begin, .*, got builtin",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_another_type_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ImageSkipGram(**options)


@pytest.mark.parametrize("options", [{"deterministic": True}, {"dtype": "float64"}], ids=str)
def test_a_gpu_does_not_do_everything(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf'^{next(iter(options))} must not be .* with device="cuda"$'):
        ImageSkipGram(device="cuda", **options)


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed")
def test_a_gpu_without_torch_names_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"imgskipgram\[gpu\]"):
        ImageSkipGram(device="cuda")


@pytest.mark.parametrize(("exponent", "word"), [(1000, 0), (-1000, 2)])
def test_an_exponent_beyond_measure_leaves_one_negative(exponent: float, word: int) -> None:
    """Of words with 9, 4 and 1 occurrences."""
    model = ImageSkipGram(min_count=1)
    model.build_vocab(["a " * 9 + "b " * 4 + "c"])
    threshold, alias = model._vocabulary.noise(exponent)
    assert threshold.tolist() == [2**32 - 1 if i == word else 0 for i in range(3)]
    assert alias.tolist() == [word] * 3


def test_an_option_is_an_attribute_and_checked_when_set() -> None:
    model = ImageSkipGram(window=3)
    assert model.window == 3
    model.window = 7
    assert model._options.window == 7
    with pytest.raises(ValueError, match=r"^window must be a positive integer, got 0$"):
        model.window = 0
    assert model.window == 7
    with pytest.raises(AttributeError, match=r"'ImageSkipGram' object has no attribute 'windw'"):
        _ = model.windw


def test_what_rows_have_stays_once_there_are_rows() -> None:
    model = ImageSkipGram(min_count=1)
    model.vector_size = 10
    model.build_vocab(["a b c"])
    assert model.wv.vectors.shape == (3, 10)
    with pytest.raises(ValueError, match=r"^vector_size must stay 10 once there is a vocabulary, got 20$"):
        model.vector_size = 20
    model.vector_size = 10


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **{name: st.integers(1, 10_000) for name in POSITIVE},
            "min_count": st.integers(0, 100).map(np.int64),
            "seed": st.integers(0, 2**64 - 1),
            "sample": st.floats(0, 1, exclude_max=True),
            "alpha": st.floats(1e-4, 1e30),
            "min_alpha": st.floats(0, 1e-4),
            "ns_exponent": st.floats(-10, 10),
            "image_weight": st.floats(0, 1e9),
            "shrink_windows": st.sampled_from([True, False, np.bool(True), 0, 1]),
            "objective": st.sampled_from(["nce", "margin", "infonce", "none"]),
        },
    )
)
def test_allowed_values_are_kept_and_make_the_same_options_again(given_options: dict[str, Any]) -> None:
    options = Options(**given_options)
    assert all(getattr(options, name) == value for name, value in given_options.items())
    assert Options(**options.arguments()) == options
    kinds = {type(value) for value in options.arguments().values()}
    assert kinds <= {int, float, str, bool, tuple, type(None)}  # files have no NumPy scalars
