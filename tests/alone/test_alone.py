"""One package where nothing is installed but its wheel and the dependencies that it declares."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tree import PACKAGES, Package

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

IMPORT_ALL = """
import importlib, json, pkgutil, sys
root, *others = sys.argv[1:]
found = {root: ""}
for info in pkgutil.walk_packages(importlib.import_module(root).__path__, f"{root}.", onerror=lambda name: None):
    if "._" not in info.name:
        try:
            importlib.import_module(info.name)
            found[info.name] = ""
        except ImportError as error:
            found[info.name] = f"{type(error).__name__}: {error}"
there = [name for name in others if name in sys.modules or importlib.util.find_spec(name)]
print(json.dumps([found, there]))
"""


def test_every_module_is_imported_or_names_its_extra_and_no_other_package_is_there(
    package: Package, python: Callable[..., str]
) -> None:
    others = [other.module for other in PACKAGES if other != package]
    found, there = json.loads(python("-c", IMPORT_ALL, package.module, *others))
    assert there == []
    assert {f"{package.module}.{path.stem}" for path in package.source.glob("[!_]*.py")} <= found.keys()
    assert {name: error for name, error in found.items() if error and f"{package.name}[" not in error} == {}


def test_the_quickstart_runs(package: Package, python: Callable[..., str]) -> None:
    assert python(package.path / "examples" / "quickstart.py").strip()


def test_python_m_tells_what_serves_the_cpu(
    package: Package, python: Callable[..., str], request: pytest.FixtureRequest
) -> None:
    served = re.findall(r"\bcpu +(C\+\+|reference(?! *, by design))", python("-m", package.module))
    assert set(served) == {request.config.getoption("kernels")}


def test_the_wheel_is_of_its_kind(package: Package, python: Callable[..., str], request: pytest.FixtureRequest) -> None:
    """Without kernels it serves every platform, and with them every Python of one."""
    code = f"from importlib.metadata import distribution; print(distribution({package.name!r}).read_text('WHEEL'))"
    tags = re.findall(r"^Tag: (.*)$", python("-c", code), re.MULTILINE)
    everywhere = request.config.getoption("kernels") == "reference"
    kind = "py3-none" if package.needs_torch else "cp310-abi3"
    assert tags
    assert [tag for tag in tags if not tag.startswith(kind) or tag.endswith("-any") != everywhere] == []
