"""The worst corruption is in its set, and no other of the set gains more; the random one has its law."""

from __future__ import annotations

import doctest
import importlib
import itertools
import json
import math
import os
import struct
import sys
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from paramcorrupt import Corruption, corrupted, corruption, random_corruption, relative, top_n

if TYPE_CHECKING:
    from pathlib import Path

NORMS = [1.0, 1.5, 2.0, 3.0, 4.0, math.inf]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def gradients(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Twelve numbers with zeros of both signs and ties, in four tensors, one of them empty and one of no dimension."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in [(2, 3), (0,), (5,), ()]]
    tensors[0][0, 1], tensors[2][3] = -0.0, 0.0
    tensors[2][1] = -tensors[0][1, 1]
    return [x.to(dtype) for x in tensors]


def flat(tensors: Any) -> np.ndarray:
    values = tensors.dense().values() if isinstance(tensors, Corruption) else tensors
    return torch.cat([x.detach().reshape(-1).double() for x in values]).numpy()


def dual(p: float) -> float:
    return math.inf if p == 1 else 1 if p == math.inf else p / (p - 1)


def size(x: np.ndarray, p: float) -> float:
    return float(np.linalg.norm(x, p)) if len(x) else 0.0


def largest(x: np.ndarray, n: int) -> np.ndarray:
    """The n largest magnitudes, of equals the first, in order of place."""
    return np.sort(np.argsort(-abs(x), kind="stable")[:n])


class Small(nn.Module):
    """A convolution in channels_last, a transposed weight, columns of a larger tensor, bfloat16, a tied weight, and a
    parameter without gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.across = nn.Parameter(torch.randn(6, 5).t())
        self.column = nn.Parameter(torch.randn(7, 4)[:, 1:3])
        self.short = nn.Parameter(torch.randn(9).bfloat16())
        self.embed = nn.Embedding(5, 2)
        self.out = nn.Linear(2, 5, bias=False)
        self.out.weight = self.embed.weight
        self.unused = nn.Parameter(torch.randn(3))

    def give_gradients(self, seed: int = 1) -> Small:
        generator = torch.Generator().manual_seed(seed)
        for name, x in self.named_parameters():
            if name != "unused":
                x.grad = torch.randn(x.shape, generator=generator).to(x.dtype)
        return self


def bits(model: nn.Module) -> dict[str, list[int]]:
    return {name: x.detach().contiguous().view(-1).view(torch.uint8).tolist() for name, x in model.named_parameters()}


# --- the worst corruption -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("n", [1, 2, 5, 11, 12])
def test_no_support_of_n_elements_gains_more(p: float, n: int) -> None:
    for seed in range(3):
        g = gradients(seed)
        worst = corruption(g, eps=0.3, p=p, n=n)
        x = flat(g)
        best = max(size(x[list(support)], dual(p)) for support in itertools.combinations(range(12), n))
        assert worst.gain == pytest.approx(0.3 * best, rel=1e-12)
        a = flat(worst)
        assert a @ x == pytest.approx(worst.gain, rel=1e-12)
        assert size(a, p) == pytest.approx(0.3, rel=1e-12)
        assert worst.norm() == pytest.approx(0.3, rel=1e-12)
        assert np.count_nonzero(a) == worst.nnz == (1 if p == 1 else min(n, np.count_nonzero(x)))


@pytest.mark.parametrize("p", NORMS)
def test_no_random_corruption_of_the_set_gains_more(p: float) -> None:
    g = gradients()
    best = corruption(g, eps=0.3, p=p, n=7).gain
    gains = [flat(random_corruption(g, eps=0.3, p=p, n=7, seed=seed)) @ flat(g) for seed in range(40)]
    assert max(gains) <= best * (1 + 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", NORMS)
def test_gain_is_the_dual_norm_of_the_largest_gradients_of_all_tensors_together(p: float, dtype: torch.dtype) -> None:
    """The gradient of one tensor is much larger: the support lies in it, whatever the other tensors have."""
    g = [torch.randn(40, 30), torch.randn(1000) * 1e3, torch.randn(77)]
    g = [x.to(dtype) for x in g]
    worst = corruption(g, eps=0.7, p=p, n=500)
    found = flat(worst).nonzero()[0]
    assert found.min() >= 1200
    assert found.max() < 2200
    h = np.sort(abs(flat(g)))[-500:]
    assert worst.gain == pytest.approx(0.7 * size(h, dual(p)), rel=1e-12)


def test_all_of_a_budget_of_p_1_goes_to_the_first_of_the_largest_gradients() -> None:
    worst = corruption([torch.tensor([1.0, -3.0]), torch.tensor([3.0, -3.0])], eps=2, p=1)
    assert worst.is_sparse
    assert [x.tolist() for x in worst.dense().values()] == [[0, -2], [0, 0]]
    assert (worst.gain, worst.nnz) == (6, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["constant", "zeros", "few values"])
@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 300))
def test_ties_are_cut_to_n_elements_and_zeros_are_none(kind: str, dtype: torch.dtype, n: int) -> None:
    values = {
        "constant": torch.full((300,), -0.5),
        "zeros": torch.zeros(300).index_fill(0, torch.arange(0, 300, 7), 2.0),
        "few values": (torch.arange(300) % 5 - 2).float(),
    }[kind].to(dtype)
    g = list(values.split([100, 1, 199]))
    for p in (1.5, 2, math.inf):
        worst = corruption(g, eps=1, p=p, n=n)
        a, x = flat(worst), flat(g)
        assert worst.nnz == np.count_nonzero(a) == min(n, np.count_nonzero(x))
        kept = largest(x, n)
        assert a.nonzero()[0].tolist() == kept[x[kept] != 0].tolist()


def test_the_same_elements_for_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    g = [torch.randn(300_000).mul(8).round(), torch.randn(70_001).mul(8).round()]
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append((corruption(g, eps=1, n=100_000), random_corruption(g, eps=1, n=1000, seed=1)))
    finally:
        torch.set_num_threads(threads)
    for worst, noise in results[1:]:
        assert np.array_equal(flat(worst) != 0, flat(results[0][0]) != 0)
        assert np.array_equal(flat(noise), flat(results[0][1]))


@pytest.mark.parametrize("p", [1 + 1e-6, 1.01, 1e6])
@pytest.mark.parametrize("n", [None, 50])
@pytest.mark.parametrize("scale", [1e-40, 1.0, 1e37])
def test_extreme_exponents_and_gradients_overflow_nowhere(p: float, n: int | None, scale: float) -> None:
    g = [torch.randn(100, generator=torch.Generator().manual_seed(0)) * scale, torch.tensor([2.0, -2.5]) * scale]
    worst = corruption(g, eps=0.3, p=p, n=n)
    x = flat(g)
    h = x[largest(x, n or 102)]
    q = p / (p - 1)
    expected = 0.3 * abs(h).max() * float(((abs(h) / abs(h).max()) ** q).sum()) ** (1 / q)
    assert worst.gain == pytest.approx(expected, rel=1e-12)
    assert worst.norm() == pytest.approx(0.3, rel=1e-12)
    a = flat(worst)
    assert np.isfinite(a).all()
    top = abs(a).max()
    assert top * float(((abs(a) / top) ** p).sum()) ** (1 / p) == pytest.approx(0.3, rel=1e-6)
    assert float(a / top @ (x / abs(x).max())) * top * abs(x).max() == pytest.approx(expected, rel=1e-6)
    assert worst.nnz == (n or 102)


@pytest.mark.parametrize("power", [-300, -200, 200, 300])
def test_gradients_whose_squares_are_no_doubles_are_like_others(power: int) -> None:
    g = [torch.tensor([3.0, -4.0], dtype=torch.float64) * 10.0**power]
    for n in (None, 1):
        worst = corruption(g, eps=0.5, n=n)
        assert flat(worst) == pytest.approx([0.3, -0.4] if n is None else [0, -0.5], rel=1e-14)
        assert worst.gain == pytest.approx((2.5 if n is None else 2) * 10.0**power, rel=1e-14)
        assert worst.norm() == pytest.approx(0.5, rel=1e-14)


@pytest.mark.parametrize("n", [None, 7])
@pytest.mark.parametrize("p", NORMS)
def test_norms_of_any_exponent_are_those_of_the_corruption(p: float, n: int | None) -> None:
    worst = corruption(gradients(), eps=0.3, p=p, n=n)
    noise = random_corruption(gradients(), eps=0.3, p=p, n=n, seed=1)
    for change in (worst, noise):
        for other in NORMS:
            assert change.norm(other) == pytest.approx(size(flat(change), other), rel=1e-12)
    with pytest.raises(ValueError, match=r"p must be at least 1, got 0"):
        worst.norm(0)


def test_an_empty_budget_is_an_empty_corruption() -> None:
    for change in (corruption(gradients(), eps=0), random_corruption(gradients(), eps=0, seed=0)):
        assert (change.gain, change.nnz, change.norm()) == (0, 0, 0)
        assert not flat(change).any()


@pytest.mark.parametrize("n", [None, 3])
@pytest.mark.parametrize("p", NORMS)
def test_zero_gradients_warn_and_change_nothing(p: float, n: int | None) -> None:
    model = nn.Linear(3, 2)
    for x in model.parameters():
        x.grad = torch.zeros_like(x)
    before = bits(model)
    with pytest.warns(UserWarning, match="all gradients are zero"):
        worst = corruption(model, eps=0.1, p=p, n=n)
    assert (worst.nnz, worst.gain, worst.norm()) == (0, 0, 0)
    with corrupted(model, worst) as applied:
        assert bits(model) == before
    assert (applied.changed, applied.norm) == (0, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [None, 1, 3, 20])
def test_gradients_that_are_not_finite_are_named_and_counted(bad: float, n: int | None) -> None:
    g = {"a": torch.randn(10), "b": torch.randn(4, 3)}
    g["b"][1] = bad
    for call in (lambda: corruption(g, eps=1, n=n), lambda: corruption(g, eps=0, n=n), lambda: top_n(g, n or 22)):
        with pytest.raises(ValueError, match=r"'b' must be finite, got 3 elements that are NaN or infinite"):
            call()


# --- what it refers to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.05, 2.0, math.inf])
def test_a_corruption_of_all_elements_holds_the_gradients_and_not_itself(p: float) -> None:
    model = Small().give_gradients()
    worst = corruption(model, eps=0.1, p=p)
    assert not worst.is_sparse
    assert {id(x) for x in worst._form.gradients} == {id(x.grad) for x in model.parameters() if x.grad is not None}


def test_a_gradient_that_has_changed_is_noticed_before_the_first_write(tmp_path: Path) -> None:
    model = Small().give_gradients()
    worst, before = corruption(model, eps=0.1), bits(model)
    model.short.grad.zero_()
    uses = [worst.norm, worst.dense, lambda: worst.save(tmp_path / "x"), lambda: corrupted(model, worst).__enter__()]
    for use in uses:
        with pytest.raises(RuntimeError, match=r"gradient 'short' must stay as it was"):
            use()
    assert bits(model) == before
    assert not list(tmp_path.iterdir())


def test_a_sparse_corruption_outlives_the_gradients() -> None:
    model = Small().give_gradients()
    worst = corruption(model, eps=0.1, n=20)
    a = flat(worst)
    for x in model.parameters():
        x.grad = None
    assert np.array_equal(flat(worst), a)


def test_gradients_made_in_inference_mode_have_no_version_and_can_be_used() -> None:
    with torch.inference_mode():
        g = [torch.tensor([3.0, 4.0])]
    assert corruption(g, eps=5).dense()["0"].tolist() == [3.0, 4.0]


def test_parameters_without_gradient_are_skipped_and_do_not_count() -> None:
    model = Small().give_gradients()
    worst = corruption(model, eps=0.1)
    assert worst.skipped == ("unused",)
    assert worst.k == sum(x.numel() for x in model.parameters()) - 3
    assert "out.weight" not in worst.dense()
    assert "embed.weight" in worst.dense()


def test_a_relative_budget_is_a_share_of_the_weights_that_have_gradients() -> None:
    model = Small().give_gradients()
    for p in (1, 2, 3, math.inf):
        w = flat([x for name, x in model.named_parameters() if name != "unused"])
        assert corruption(model, eps=relative(0.02), p=p).eps == pytest.approx(0.02 * size(w, p), rel=1e-12)
    with pytest.raises(ValueError, match=r"eps must be a number where only gradients are given.*pass the module"):
        corruption([torch.ones(3)], eps=relative(0.02))
    with pytest.raises(ValueError, match=r"relative must be of a finite and non-negative number, got -1"):
        relative(-1)
    with pytest.raises(TypeError, match=r"relative must be of a number, got '1'"):
        relative("1")
    with torch.no_grad():
        model.short[2] = math.nan
    with pytest.raises(ValueError, match=r"parameter 'short' must be finite, got 1 "):
        corruption(model, eps=relative(0.02))


def test_dense_tensors_are_float32_for_half_types_so_that_small_elements_stay() -> None:
    worst = corruption([torch.tensor([1.0, 2.0**-20]).half()], eps=1e-3)
    a = worst.dense()["0"]
    assert a.dtype == torch.float32
    assert a.count_nonzero() == worst.nnz == 2


# --- written to weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [None, 60])
@pytest.mark.parametrize("p", [1.0, 1.02, 1.5, 2.0, 40.0, math.inf])
@pytest.mark.parametrize("kind", ["worst", "random"])
@pytest.mark.parametrize("keep", ["backup", "compact"])
def test_weights_of_any_layout_become_w_plus_a_rounded_once(
    keep: Literal["backup", "compact"], kind: str, p: float, n: int | None
) -> None:
    model = Small().give_gradients()
    change = (
        corruption(model, eps=0.4, p=p, n=n) if kind == "worst" else random_corruption(model, eps=0.4, p=p, n=n, seed=3)
    )
    before, clean = bits(model), {name: x.detach().clone() for name, x in model.named_parameters()}
    moved = []
    with corrupted(model, change, keep=keep) as applied:
        for name, a in change.items():
            x = model.get_parameter(name)
            expected = (clean[name].float() + a).to(x.dtype)
            torch.testing.assert_close(x.detach(), expected, rtol=torch.finfo(x.dtype).eps, atol=0)
            moved.append(x.detach().double() - clean[name].double())
    assert bits(model) == before
    assert applied.changed == sum(int(x.count_nonzero()) for x in moved)
    assert applied.norm == pytest.approx(size(flat(moved) / 0.4, p) * 0.4, rel=1e-9)


def test_what_lies_between_the_elements_of_a_weight_is_left_alone() -> None:
    whole = torch.randn(7, 4)
    before = whole.clone()
    for n in (None, 5):
        with corrupted({"w": whole[:, 1:3]}, corruption({"w": torch.randn(7, 2)}, eps=1, n=n)):
            assert torch.equal(whole[:, [0, 3]], before[:, [0, 3]])
            assert not torch.equal(whole, before)
        assert torch.equal(whole, before)


@pytest.mark.parametrize("kind", ["sparse", "dense", "random", "scattered"])
def test_weights_of_another_dtype_are_refused_before_the_first_write(kind: str, tmp_path: Path) -> None:
    weights = {"first": torch.ones(3), "second": torch.ones(4)}
    worst, noise = partial(corruption, weights, eps=1), partial(random_corruption, weights, eps=1, seed=0)
    make = {"sparse": partial(worst, n=4), "dense": worst, "random": noise, "scattered": partial(noise, n=4)}
    change = make[kind]()
    change.save(tmp_path / "a")
    model = {"first": torch.ones(3), "second": torch.ones(4, dtype=torch.bfloat16)}
    for each in (change, Corruption.load(tmp_path / "a")):
        with pytest.raises(ValueError, match=r"'second' must be of torch\.float32, .*got torch\.bfloat16"):
            corrupted(model, each).__enter__()
        assert model["first"].tolist() == [1, 1, 1]


def test_a_corruption_that_does_not_fit_is_refused_before_the_first_write() -> None:
    first, second = torch.ones(2), torch.ones(3)
    change = corruption({"first": torch.ones(2), "second": torch.ones(4)}, eps=1)
    with pytest.raises(ValueError, match=r"'second' must have the shape of its change, \(4,\), got \(3,\)"):
        corrupted({"first": first, "second": second}, change).__enter__()
    assert first.tolist() == [1, 1]


# --- the random corruption ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [None, 1, 500])
@pytest.mark.parametrize("p", [*NORMS, 1e6])
def test_random_corruptions_have_the_norm_and_the_number_of_elements(p: float, n: int | None) -> None:
    w = [
        torch.zeros(70, 10),
        torch.zeros(0),
        torch.zeros(400, dtype=torch.bfloat16),
        torch.zeros((), dtype=torch.float64),
    ]
    noise = random_corruption(w, eps=0.3, p=p, n=n, seed=5)
    a = flat(noise)
    assert size(a / 0.3, p if p < 1e6 else math.inf) == pytest.approx(1, rel=1e-5)
    assert noise.norm() == pytest.approx(0.3, rel=1e-12)
    assert np.count_nonzero(a) == noise.nnz == (n or 1101)
    assert noise.is_sparse == (n is not None)
    assert math.isnan(noise.gain)
    if p == math.inf:
        np.testing.assert_allclose(abs(a[a != 0]), 0.3, rtol=1e-6)


def test_the_gain_of_uniform_noise_has_the_beta_law() -> None:
    k = 60
    g = torch.randn(k, generator=torch.Generator().manual_seed(1))
    eta = [flat(random_corruption([g], eps=2, seed=seed)) @ flat([g]) for seed in range(500)]
    squares = (np.array(eta) / (2 * size(flat([g]), 2))) ** 2
    assert stats.kstest(squares, stats.beta(0.5, (k - 1) / 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("n", [7, 64])
def test_the_mean_square_gain_is_that_of_the_uniform_law(p: float, n: int) -> None:
    """eps^2 |g|^2 / k for p = 2, times n for p = inf: 5 standard errors of the mean of 300."""
    g = torch.randn(64, generator=torch.Generator().manual_seed(2))
    squares = np.array([(flat(random_corruption([g], eps=1, p=p, n=n, seed=s)) @ flat([g])) ** 2 for s in range(300)])
    expected = size(flat([g]), 2) ** 2 / 64 * (n if p == math.inf else 1)
    assert abs(squares.mean() - expected) < 5 * squares.std() / math.sqrt(300)


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0])
def test_numbers_on_the_support_have_the_law_of_the_sphere(p: float) -> None:
    """|a_1|^p / eps^p ~ Beta(1/p, (n-1)/p), where z has the density exp(-|z|^p)."""
    first = []
    for seed in range(250):
        a = flat(random_corruption([torch.zeros(16)], eps=1, p=p, n=6, seed=seed))
        first.append(abs(a[a != 0][0]) ** p)
    assert stats.kstest(first, stats.beta(1 / p, 5 / p).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("k", "n"), [(4, 2), (6, 3), (16, 1)])
def test_every_support_of_n_elements_is_as_likely(k: int, n: int) -> None:
    supports = dict.fromkeys(itertools.combinations(range(k), n), 0)
    parts = [torch.zeros(1), torch.zeros(k - 1)]
    for seed in range(250):
        supports[tuple(flat(random_corruption(parts, eps=1, n=n, seed=seed)).nonzero()[0].tolist())] += 1
    assert stats.chisquare(list(supports.values())).pvalue > 1e-3


def test_signs_and_support_are_independent() -> None:
    """With the numbers that choose the support nothing else is drawn."""
    table = np.zeros((4, 2))
    for seed in range(250):
        a = flat(random_corruption([torch.zeros(4)], eps=1, n=1, seed=seed))
        place = a.nonzero()[0][0]
        table[place, int(a[place] > 0)] += 1
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_a_random_corruption_depends_on_the_seed_and_not_on_the_layout() -> None:
    w = torch.zeros(4, 3, 5, 5)
    for n in (None, 50):
        noise = random_corruption([w], eps=1, n=n, seed=9)
        a = noise.dense()["0"]
        last = torch.zeros_like(w, memory_format=torch.channels_last)
        assert torch.equal(random_corruption([last], eps=1, n=n, seed=9).dense()["0"], a)
        assert not torch.equal(random_corruption([w], eps=1, n=n, seed=10).dense()["0"], a)
        for x in (w, last):
            with corrupted([x], noise):
                torch.testing.assert_close(x, a)


def test_a_random_corruption_of_all_elements_stores_none() -> None:
    noise = random_corruption([torch.zeros(1_100_000), torch.zeros(7)], eps=1, seed=0)
    assert not any(isinstance(getattr(noise._form, name), Tensor) for name in type(noise._form).__slots__)
    assert noise.norm() == pytest.approx(1, rel=1e-12)
    assert np.linalg.norm(flat(noise)) == pytest.approx(1, rel=1e-6)


def test_frozen_parameters_are_skipped_as_gradients_skip_them() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    noise = random_corruption(model, eps=1, seed=0)
    assert (noise.skipped, noise.k) == (("bias",), 6)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"requires a gradient, got none; pass a mapping"):
        random_corruption(model, eps=1, seed=0)
    assert random_corruption(dict(model.named_parameters()), eps=1, seed=0).k == 8


# --- selection ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 200), seed=st.integers(0, 100), dtype=st.sampled_from(DTYPES))
def test_the_n_largest_are_those_of_a_stable_sort(n: int, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(10, 20, generator=generator).mul(4).round().to(dtype)
    tensors = {"a": x[:3].t(), "b": x[3:, ::2], "c": x[3:, 1::2]}
    found = top_n(tensors, n)
    every = flat(tensors.values())
    starts = np.cumsum([0, 60, 70, 70])
    owner = np.repeat(np.arange(3), found.offsets.diff().numpy())
    assert (starts[owner] + found.index.numpy()).tolist() == largest(every, n).tolist()
    assert found.value.tolist() == every[largest(every, n)].tolist()
    assert found.value.dtype == dtype
    assert found.threshold == sorted(abs(every))[-n]
    assert found.ties == sum(abs(found.value.double()) == found.threshold)


def test_the_number_of_the_largest_must_be_one() -> None:
    with pytest.raises(TypeError, match="n must be an integer, got None"):
        top_n([torch.ones(3)], None)
    with pytest.raises(ValueError, match="got n=4 with k=3"):
        top_n([torch.ones(3)], 4)


# --- files ----------------------------------------------------------------------------------------------------------


def changes() -> dict[str, Corruption]:
    model = Small().give_gradients()
    return {
        "sparse": corruption(model, eps=0.1, n=30),
        "dense": corruption(model, eps=0.1, p=3),
        "near 1": corruption(model, eps=0.1, p=1.001),
        "random": random_corruption(model, eps=0.1, p=math.inf, seed=4),
        "scattered": random_corruption(model, eps=0.1, n=9, seed=4),
        "empty": corruption(model, eps=0),
    }


@pytest.mark.parametrize("kind", ["sparse", "dense", "near 1", "random", "scattered", "empty"])
def test_a_file_gives_the_same_corruption_bit_for_bit(kind: str, tmp_path: Path) -> None:
    change = changes()[kind]
    change.save(tmp_path / "a.safetensors")
    again = Corruption.load(tmp_path / "a.safetensors")
    for field in ("eps", "p", "n", "k", "nnz", "skipped", "is_sparse"):
        assert getattr(again, field) == getattr(change, field)
    assert again.gain == change.gain or math.isnan(again.gain) == math.isnan(change.gain) is True
    assert all(torch.equal(x, y) for x, y in zip(again.dense().values(), change.dense().values(), strict=True))
    model, twin = Small(), Small()
    with corrupted(model, change), corrupted(twin, again):
        assert bits(model) == bits(twin)
    assert [x.name for x in tmp_path.iterdir()] == ["a.safetensors"]


def test_one_gradient_of_two_parameters_can_be_saved(tmp_path: Path) -> None:
    g = torch.tensor([3.0, 4.0])
    corruption([g, g], eps=1).save(tmp_path / "a")
    x, y = Corruption.load(tmp_path / "a").dense().values()
    assert torch.equal(x, y)


def test_a_file_has_the_permissions_of_others_and_keeps_its_own(tmp_path: Path) -> None:
    plain, saved = tmp_path / "plain", tmp_path / "saved"
    plain.touch()
    changes()["sparse"].save(saved)
    assert saved.stat().st_mode == plain.stat().st_mode
    saved.chmod(0o640)
    changes()["dense"].save(saved)
    assert saved.stat().st_mode & 0o777 == 0o640


def test_a_file_is_written_without_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = changes()["dense"]
    monkeypatch.setitem(sys.modules, "numpy", None)
    change.save(tmp_path / "a")
    assert Corruption.load(tmp_path / "a").norm() == change.norm()


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe, copy = tmp_path / "pipe", tmp_path / "copy"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    changes()["sparse"].save(pipe)
    copy.write_bytes(os.read(reader, 1 << 16))
    os.close(reader)
    assert Corruption.load(copy).nnz == changes()["sparse"].nnz
    assert pipe.is_fifo()


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        changes()["sparse"].save(tmp_path / "folder")
    with pytest.raises(FileNotFoundError):
        changes()["sparse"].save(tmp_path / "missing" / "a")
    assert [x.name for x in tmp_path.iterdir()] == ["folder"]


def rewritten(path: Path, change: Any) -> Path:
    """The file with its facts changed."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["paramcorrupt"])
    change(facts)
    header["__metadata__"]["paramcorrupt"] = json.dumps(facts)
    text = json.dumps(header).encode()
    other = path.with_name("other")
    other.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return other


HOSTILE = {
    "schema": lambda x: x.update(schema="paramcorrupt/corruption/2"),
    "no eps": lambda x: x.pop("eps"),
    "eps": lambda x: x.update(eps="nan"),
    "p": lambda x: x.update(p="0x1p-1"),
    "n": lambda x: x.update(n=10**9),
    "nnz": lambda x: x.update(nnz=1),
    "gain": lambda x: x.update(gain="inf"),
    "negative shape": lambda x: x["tensors"][0].update(shape=[-4, -27]),
    "smaller shape": lambda x: x["tensors"][0].update(shape=[1]),
    "huge shape": lambda x: x["tensors"][0].update(shape=[1 << 40, 1 << 40]),
    "names": lambda x: x["tensors"][0].update(name=x["tensors"][1]["name"]),
    "fewer tensors": lambda x: x["tensors"].pop(),
    "name": lambda x: x["tensors"][0].update(name=3),
    "dtype": lambda x: x["tensors"][0].update(dtype="int8"),
    "kind": lambda x: x["form"].update(kind="pickle"),
    "other form": lambda x: x["form"].update(kind="random", seed=0, scale="0x1p0"),
    "list": lambda x: x.update(tensors=3),
    "form": lambda x: x.update(form=[]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_files_that_contradict_themselves_are_refused(kind: str, tmp_path: Path) -> None:
    changes()["sparse"].save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"other must be a file that Corruption\.save wrote, got"):
        Corruption.load(rewritten(tmp_path / "a", HOSTILE[kind]))


@pytest.mark.parametrize(
    ("form", "facts"),
    [
        ("dense", {"scale": "nan"}),
        ("dense", {"scale": "-0x1p0"}),
        ("dense", {"unit": "0x0p0"}),
        ("dense", {"power": "inf"}),
        ("dense", {"power": 3}),
        ("random", {"seed": -1}),
        ("random", {"scale": "inf"}),
    ],
)
def test_files_whose_form_is_out_of_range_are_refused(form: str, facts: dict[str, Any], tmp_path: Path) -> None:
    changes()[form].save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"must be a file that Corruption\.save wrote"):
        Corruption.load(rewritten(tmp_path / "a", lambda x: x["form"].update(facts)))


@pytest.mark.parametrize("what", ["offsets", "index", "delta", "order", "dtype", "other"])
def test_files_whose_tensors_are_out_of_range_are_refused(what: str, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    changes()["sparse"].save(tmp_path / "a")
    with safe_open(tmp_path / "a", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in ("offsets", "index", "delta")}
    if what == "offsets":
        tensors["offsets"][1] = 1000
    elif what == "index":
        tensors["index"][-1] = 1000
    elif what == "delta":
        tensors["delta"][3] = math.nan
    elif what == "order":
        tensors["index"][:2] = tensors["index"][:2].flip(0)
    elif what == "dtype":
        tensors["delta"] = tensors["delta"].float()
    else:
        tensors["more"] = torch.ones(1)
    save_file(tensors, tmp_path / "b", metadata)
    with pytest.raises(ValueError, match=r"must be a file that Corruption\.save wrote"):
        Corruption.load(tmp_path / "b")


@pytest.mark.parametrize("data", [b"", b"no safetensors", b"\xff" * 64, struct.pack("<Q", 2) + b"{}"])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match=r"a must be a file that Corruption\.save wrote"):
        Corruption.load(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        Corruption.load(tmp_path / "b")


# --- the rest -------------------------------------------------------------------------------------------------------


def test_arguments_are_refused_before_any_work() -> None:
    g = [torch.full((3,), math.nan)]  # which would be refused, too, and later
    for arguments, kind, message in [
        ({"eps": -1}, ValueError, "eps must be finite and non-negative, got -1"),
        ({"eps": 1, "p": 0.9}, ValueError, "p must be at least 1"),
        ({"eps": 1, "n": 0}, ValueError, "got n=0 with k=3"),
        ({"eps": 1, "n": 1.0}, TypeError, "n must be an integer"),
    ]:
        with pytest.raises(kind, match=message):
            corruption(g, **arguments)
        with pytest.raises(kind, match=message):
            random_corruption(g, seed=0, **arguments)
    with pytest.raises(ValueError, match="seed must be non-negative"):
        random_corruption(g, eps=1, seed=-1)


def test_the_examples_of_the_documentation_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert doctest.testmod(importlib.import_module("paramcorrupt.corruption")).failed == 0
