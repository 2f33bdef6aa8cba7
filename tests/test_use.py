"""What a user meets: the import, the documentation, the report of `python -m`."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from tree import COMPILER, Package

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result


def public(module: ModuleType) -> dict[str, object]:
    """The public names of a package, and of its classes the methods that they define."""
    names = {name: getattr(module, name) for name in module.__all__}
    for name, value in list(names.items()):
        if inspect.isclass(value):
            names |= {f"{name}.{key}": getattr(value, key) for key in vars(value) if not key.startswith("_")}
    return {name: value for name, value in names.items() if callable(value) or inspect.ismodule(value)}


def test_the_installed_package_has_the_version_of_the_tree(package: Package, tmp_path: Path) -> None:
    code = f"import {package.module}; print({package.module}.__version__, {package.module}.__file__)"
    version, file = python(tmp_path, "-c", code).stdout.split()
    assert version == package.project["version"]
    assert not file.startswith(str(package.path))


def test_every_public_name_is_documented(package: Package) -> None:
    names = public(importlib.import_module(package.module))
    assert names
    assert [name for name, value in names.items() if not inspect.getdoc(value)] == []


def test_examples_in_docstrings_run(package: Package) -> None:
    module = importlib.import_module(package.module)
    runner = doctest.DocTestRunner()
    for name in module.__all__:
        for test in doctest.DocTestFinder().find(getattr(module, name), name, globs=dict(vars(module))):
            runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_the_import_costs_less_than_50_ms_beyond_that_of_torch(package: Package, tmp_path: Path) -> None:
    def milliseconds() -> float:
        report = python(tmp_path, "-X", "importtime", "-c", f"import torch, {package.module}").stderr
        return int(re.search(rf"\| +(\d+) \| {package.module}$", report, re.MULTILINE)[1]) / 1000

    assert min(milliseconds() for _ in range(3)) < 50


def test_python_m_tells_the_version_and_which_kernels_serve(package: Package, tmp_path: Path) -> None:
    report = python(tmp_path, "-m", package.module).stdout
    assert package.project["version"] in report
    assert bool(re.search(r"\bcpu +C\+\+", report)) == bool(COMPILER)


def test_the_code_of_the_readme_runs(package: Package, tmp_path: Path) -> None:
    """All blocks marked `python`, in order, as one program whose lines keep their numbers."""
    lines, language = [], ""
    for line in (package.path / "README.md").read_text().splitlines():
        if line.startswith("```"):
            language = "" if language else line[3:].strip() or "text"
            line = ""
        lines.append(line if language == "python" else "")
    assert any(lines), "README.md has no block of Python"
    (tmp_path / "README.py").write_text("\n".join(lines))
    python(tmp_path, "README.py")
