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


def public(module: ModuleType, prefix: str = "") -> dict[str, object]:
    """The public names of a module: those of its public modules and the methods of its classes included."""
    names = {}
    for name in module.__all__:
        value = getattr(module, name)
        names[prefix + name] = value
        if inspect.ismodule(value):
            names |= public(value, f"{prefix}{name}.")
        if inspect.isclass(value):
            names |= {f"{prefix}{name}.{key}": getattr(value, key) for key in vars(value) if not key.startswith("_")}
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
    runner = doctest.DocTestRunner()
    for name, value in public(importlib.import_module(package.module)).items():
        for test in doctest.DocTestFinder(recurse=False).find(value, name):
            runner.run(test)
    assert runner.tries
    assert not runner.failures


def test_the_import_costs_less_than_50_ms_beyond_that_of_torch(package: Package, tmp_path: Path) -> None:
    """In CPU time, which a busy machine disturbs least; `python -X importtime` shows where it goes."""
    clock = "import torch, time; start = time.process_time(); import {}; print(time.process_time() - start)"
    assert min(float(python(tmp_path, "-c", clock.format(package.module)).stdout) for _ in range(5)) < 0.05


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
