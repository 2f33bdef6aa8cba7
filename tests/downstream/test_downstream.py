"""A project that depends on two of the packages, installed with them and whatever they declare, and nothing else."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_project_that_depends_on_two_packages_runs(python: Callable[..., str], tmp_path: Path) -> None:
    """Animals do this and dishes are that, in every combination: so those are neighbours that stand for each other."""
    animals, deeds, dishes, tastes = (
        ["小猫", "小狗", "老虎"],
        ["睡觉", "跑步"],
        ["米饭", "面条", "饺子"],
        ["好吃", "美味"],
    )
    text = [f"{animal}正在{deed}。" for animal, deed in product(animals, deeds)]
    text += [f"这里的{dish}很{taste}。" for dish, taste in product(dishes, tastes)]
    (tmp_path / "text.txt").write_text("\n".join(text * 20), encoding="utf-8")
    lines = python("-m", "neighbours", tmp_path / "text.txt", "小猫", "米饭").splitlines()
    found = {word: set(neighbours) for word, *neighbours in map(str.split, lines)}
    assert found.keys() == {"小猫", "米饭"}
    assert found["小猫"] & {*dishes, *tastes} == set()
    assert found["米饭"] & {*animals, *deeds} == set()
