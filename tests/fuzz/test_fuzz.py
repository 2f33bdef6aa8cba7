"""Every target on its corpus, on a few mutations of it, and on a few inputs from nothing; the same ones each time."""

from __future__ import annotations

from importlib import import_module
from random import Random
from typing import TYPE_CHECKING

import pytest
from fuzz.mutation import mutated
from fuzz.targets import MODULES, attempt, corpus, of_package
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz.targets import Target

FEW = settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
TARGETS = [pytest.param(target, id=target.name) for package in MODULES for target in of_package(package)]


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left() -> Iterator[None]:
    yield
    for module in MODULES.values():
        for value in vars(import_module(f"fuzz.{module}")).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_is_taken_or_refused_in_words(target: Target) -> None:
    found = corpus(target)
    for name, data in found.items():
        refusal = attempt(target, data)
        if name.startswith("valid-"):
            assert refusal is None, f"{name}: {refusal!r}"
    assert found or target.seeds is None


@pytest.mark.parametrize("target", TARGETS)
def test_neighbours_of_the_corpus_are_taken_or_refused_in_words(target: Target) -> None:
    seeds = list(corpus(target).values())

    @FEW
    @given(st.integers(0, max(len(seeds) - 1, 0)), st.integers(0, 2**64 - 1), st.booleans())
    def search(seed: int, number: int, mended: bool) -> None:
        data = mutated(seeds[seed], seeds, Random(number))
        attempt(target, target.mend(data) if target.mend and mended else data)

    @FEW
    @given(st.binary(max_size=64))
    def search_from_nothing(data: bytes) -> None:
        attempt(target, data)

    if target.seeds:
        search()
    else:
        search_from_nothing()
