"""Projections are the nearest points: by the conditions of optimality, and against every support and other points."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramcorrupt._projection import project_

NORMS = [1.0, 1.5, 2.0, 3.0, 4.0, math.inf]


def projected(
    x: np.ndarray, eps: float, p: float, n: int | None = None, surface: str = "ball", dtype: torch.dtype = torch.float64
) -> np.ndarray:
    """Of the numbers as three tensors, one of them of no dimension."""
    half = len(x) // 2
    first, *rest = torch.tensor(x, dtype=dtype).split([1, half, len(x) - 1 - half])
    a = [first.clone().view(()), *(y.clone() for y in rest)]
    project_(a, eps, p, n, surface)
    return torch.cat([y.view(-1) for y in a]).double().numpy()


def size(x: np.ndarray, p: float) -> float:
    top = abs(x).max()
    return float(top if p == math.inf or not top else top * ((abs(x) / top) ** p).sum() ** (1 / p))


def numbers(count: int, seed: int) -> np.ndarray:
    """With ties and a zero."""
    x = np.random.default_rng(seed).normal(size=count)
    x[1], x[-1] = -x[0], 0
    return x


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_conditions_of_optimality_hold_on_the_ball(p: float, share: float) -> None:
    """x - b = lam grad ||b||_p^p, for one lam >= 0; p = 1 and inf by the subgradient."""
    x = numbers(50, 0)
    eps = share * size(x, p)
    b = projected(x, eps, p)
    assert size(b, p) == pytest.approx(eps, rel=1e-12)
    assert (b * x >= 0).all()
    rest, b, x = abs(x) - abs(b), abs(b), abs(x)
    assert (rest >= -1e-15).all()
    if p == 1:
        theta = rest[b > 0].mean()
        np.testing.assert_allclose(rest[b > 0], theta, rtol=1e-12)
        assert (x[b == 0] <= theta * (1 + 1e-12)).all()
    elif p == math.inf:
        assert (rest[b < eps] == 0).all()
        assert b.max() == eps
    else:
        moved = b > 0
        lam = rest[moved] / b[moved] ** (p - 1)
        strong = b[moved] > 0.1 * b.max()
        np.testing.assert_allclose(lam[strong], np.median(lam[strong]), rtol=1e-9)
        np.testing.assert_allclose(b + np.median(lam[strong]) * b ** (p - 1), x, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("p", [*NORMS, 1.01, 30.0])
@pytest.mark.parametrize("n", [1, 3, 4])
@pytest.mark.parametrize("eps", [0.3, 2.0])
def test_no_support_of_n_elements_comes_nearer(p: float, n: int, eps: float) -> None:
    for seed in range(2):
        x = numbers(5, seed)
        b = projected(x, eps, p, n)
        assert np.count_nonzero(b) <= n
        assert size(b, p) <= eps * (1 + 1e-12)
        for support in map(list, itertools.combinations(range(5), n)):
            other = np.zeros(5)
            part = np.append(x[support], 0)  # projected on its own, in two tensors or more
            other[support] = projected(part, eps, p)[:-1]
            assert ((x - b) ** 2).sum() <= ((x - other) ** 2).sum() * (1 + 1e-12)


@pytest.mark.parametrize("surface", ["ball", "sphere"])
@pytest.mark.parametrize("p", [*NORMS, 1.1, 20.0])
@pytest.mark.parametrize("inside", [0.3, 0.9, 1.5, 4.0])
def test_no_other_point_comes_nearer(surface: str, p: float, inside: float) -> None:
    """Neither far away nor close by. `inside` is eps / ||x||_p."""
    generator = np.random.default_rng(1)
    for seed in range(3):
        x = numbers(3, seed)
        eps = inside * size(x, p)
        b = projected(x, eps, p, surface=surface)
        if surface == "sphere":
            assert size(b, p) == pytest.approx(eps, rel=1e-12)
        elif inside > 1:
            assert np.array_equal(b, x)
        near = ((x - b) ** 2).sum()
        for spread in (1.0, 0.1, 1e-3):
            others = b / abs(b).max() + spread * generator.normal(size=(2000, 3))
            top = abs(others).max(1, keepdims=True)
            norms = top if p == math.inf else top * ((abs(others) / top) ** p).sum(1, keepdims=True) ** (1 / p)
            radius = eps * (1 if surface == "sphere" else generator.uniform(0.5, 1, size=(2000, 1)))
            assert ((x - others * (radius / norms)) ** 2).sum(1).min() >= near * (1 - 1e-9) - 1e-15


@pytest.mark.parametrize("p", [3.0, 10.0])
def test_on_a_sphere_of_large_p_one_of_equal_elements_may_rise_alone(p: float) -> None:
    """Inside and far from the sphere; close to it all of them rise alike."""
    x = np.full(6, 0.1)
    far, close = projected(x, 1.0, p, surface="sphere"), projected(x, 0.1001 * 6 ** (1 / p), p, surface="sphere")
    assert far[0] > 0.9
    assert far[1:].max() < 0.2
    np.testing.assert_allclose(close, 0.1001, rtol=1e-9)


@pytest.mark.parametrize("p", [*NORMS, 1.2, 7.0])
@pytest.mark.parametrize("n", [None, 2])
def test_zero_is_moved_to_the_sphere_and_stays_in_the_ball(p: float, n: int | None) -> None:
    assert not projected(np.zeros(5), 0.5, p, n).any()
    b = projected(np.zeros(5), 0.5, p, n, surface="sphere")
    assert size(b, p) == pytest.approx(0.5, rel=1e-12)
    expected = 1 if p >= 2 else (n or 5)  # the nearest points: along an axis for p > 2, between all of them for p < 2
    assert np.count_nonzero(b) == expected


@pytest.mark.parametrize("p", NORMS)
def test_a_radius_of_zero_leaves_nothing(p: float) -> None:
    assert not projected(numbers(9, 0), 0.0, p).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(1e-6, 1.2), n=st.integers(1, 300))
def test_soft_thresholds_found_by_histograms_are_those_of_sorting(
    dtype: torch.dtype, seed: int, share: float, n: int
) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).standard_t(2, size=300)).mul(8).round().div(8).to(dtype)
    x = x.double().numpy()
    order = np.argsort(-abs(x), kind="stable")[:n]
    s = abs(x[order])
    eps = share * s.sum()
    theta = 0.0
    if s.sum() > eps:
        every = (np.cumsum(s) - eps) / np.arange(1, n + 1)
        theta = every[np.nonzero(s > every)[0][-1]]
    expected = np.zeros(300)
    expected[order] = np.sign(x[order]) * np.maximum(s - theta, 0)
    rtol, atol = {torch.float32: (1e-6, 1e-6), torch.float64: (1e-11, 1e-12), torch.bfloat16: (4e-3, 1e-3)}[dtype]
    np.testing.assert_allclose(projected(x, eps, 1, n, dtype=dtype), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("scale", [1e-38, 1e-12, 1e30])
@pytest.mark.parametrize("p", [1 + 1e-6, 1.001, *NORMS, 1e6])
def test_extreme_exponents_and_sizes_stay_finite_and_on_the_sphere(p: float, scale: float) -> None:
    x = numbers(40, 3) * scale
    b = projected(x, 0.5 * scale, p, dtype=torch.float32)
    assert np.isfinite(b).all()
    assert size(b, p) == pytest.approx(0.5 * scale, rel=1e-5)
    assert size(b / scale - x / scale, 2) <= size(x / scale * (1 - 0.5 * scale / size(x, p)), 2) * (1 + 1e-6)


@pytest.mark.parametrize("p", NORMS)
def test_a_projection_is_its_own(p: float) -> None:
    b = projected(numbers(40, 4), 0.7, p, 20)
    np.testing.assert_allclose(projected(b, 0.7, p, 20), b, rtol=1e-9)


@pytest.mark.parametrize("p", NORMS)
def test_many_elements_are_projected_piece_by_piece_as_one(p: float) -> None:
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    a = list(x.clone().split([200_000, 1, 99_999]))
    project_(a, 3.0, p, 100_000)
    b = torch.cat(a).double().numpy()
    assert size(b, p) == pytest.approx(3, rel=1e-6)
    kept = np.sort(np.argsort(-abs(x.numpy()), kind="stable")[:100_000])
    assert set(b.nonzero()[0]) <= set(kept)
    if p > 1:
        assert np.count_nonzero(b) == 100_000


def test_an_empty_list_has_nothing_to_project() -> None:
    project_([], 1.0, 2.0)
    project_([torch.ones(0)], 1.0, 1.5, surface="sphere")
