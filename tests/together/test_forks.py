"""Forks after use, spawned processes and several threads: what is done there is what is done here."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from together.apart import apart
from together.moments import forked
from together.small import CHANGED_BY_USE, USES


@pytest.mark.parametrize("name", USES)
@apart
def test_a_fork_after_use_is_not_hung_up_on_threads_that_it_does_not_have(name: str) -> None:
    """Of PyTorch's it must want one only, as in a DataLoader: with more, PyTorch's own operators hang, too."""
    make, use = USES[name]
    expected = use(make())  # by one thread: sums of PyTorch's own operators are rounded otherwise by more
    torch.set_num_threads(2)
    of_two = use(make())

    def child() -> None:
        torch.set_num_threads(1)
        assert use(make()) == expected

    assert forked(child) == 0
    assert use(make()) == of_two


@pytest.mark.parametrize("name", USES)
@apart
def test_four_threads_find_what_one_does(name: str) -> None:
    """The same object where using does not change it, one for each thread otherwise."""
    make, use = USES[name]
    expected = use(make())
    things = [make() for _ in range(4)] if use in CHANGED_BY_USE else [make()] * 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, things)) == [expected] * 4


def used(pickled: bytes) -> dict[str, Any]:
    return {name: USES[name][1](thing) for name, thing in pickle.loads(pickled).items()}


@apart
def test_a_spawned_process_uses_pickles_of_everything() -> None:
    made = {name: make() for name, (make, _) in USES.items()}
    pickled = pickle.dumps(made)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(used, (pickled,))
    assert there.keys() == USES.keys()
    for name, found in there.items():
        assert found == USES[name][1](made[name]), name
