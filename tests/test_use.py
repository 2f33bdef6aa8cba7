"""What a user meets: the import, the documentation, the report of `python -m`."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tree import COMPILER, Package

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result


def modules(package: Package) -> dict[str, ModuleType]:
    """The public modules that can be imported without an extra; any other tells which extra it needs."""
    root = importlib.import_module(package.module)
    found = {package.module: root}
    for info in pkgutil.walk_packages(root.__path__, f"{package.module}."):
        if "._" in info.name:
            continue
        try:
            found[info.name] = importlib.import_module(info.name)
        except ImportError as error:
            assert f"{package.name}[" in str(error), f"{info.name} does not say which extra it needs"  # noqa: PT017
    return found


def public(package: Package) -> dict[str, object]:
    """The public modules of a package, the names that they export, and the methods of their classes."""
    names: dict[str, object] = {}
    for path, module in modules(package).items():
        names[path] = module
        for name in module.__all__:
            value = names[f"{path}.{name}"] = getattr(module, name)
            if inspect.isclass(value):
                names |= {f"{path}.{name}.{key}": getattr(value, key) for key in vars(value) if key[0] != "_"}
    return {name: value for name, value in names.items() if callable(value) or inspect.ismodule(value)}


def declared(body: list[ast.stmt]) -> set[str]:
    """The public names that a stub declares, methods included."""
    names = set()
    for node in body:
        if isinstance(node, ast.ClassDef):
            names |= {node.name, *(f"{node.name}.{name}" for name in declared(node.body))}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if "._" not in name and name[0] != "_"}


def defined(owner: object) -> set[str]:
    """The public names that a compiled module or class has, methods included."""
    names = set()
    for name, value in vars(owner).items():
        if name[0] != "_":
            names |= {name, *(f"{name}.{inner}" for inner in (defined(value) if inspect.isclass(value) else ()))}
    return names


def test_the_installed_package_has_the_version_of_the_tree(package: Package, tmp_path: Path) -> None:
    code = f"import {package.module}; print({package.module}.__version__, {package.module}.__file__)"
    version, file = python(tmp_path, "-c", code).stdout.split()
    assert version == package.project["version"]
    assert not file.startswith(str(package.path))


def test_every_public_name_is_documented(package: Package) -> None:
    names = public(package)
    assert len(names) > len(modules(package))
    assert [name for name, value in names.items() if not inspect.getdoc(value)] == []


def test_examples_in_docstrings_run(package: Package) -> None:
    runner = doctest.DocTestRunner()
    for name, value in public(package).items():
        for test in doctest.DocTestFinder(recurse=False).find(value, name):
            runner.run(test)
    assert runner.tries
    assert not runner.failures


def test_the_stub_declares_what_the_extension_has(package: Package) -> None:
    if package.needs_torch:
        pytest.skip("torch's operators have schemas instead of a stub")
    stub = ast.parse((package.source / "_core.pyi").read_text())
    assert declared(stub.body) == defined(importlib.import_module(f"{package.module}._core"))


SHARE = """
import time
start = time.process_time()
import {dependencies}
middle = time.process_time()
import {module}
print((time.process_time() - middle) / (middle - start))
"""
BROUGHT = """
import json, sys
import {dependencies}
before, read = set(sys.modules), []
sys.addaudithook(lambda event, values: read.append(str(values[0])) if event == "open" else None)
import {module}
print(json.dumps([sorted(sys.modules.keys() - before), [x for x in read if not x.endswith((".py", ".pyc"))]]))
"""


def filled(code: str, package: Package) -> str:
    return code.format(dependencies=", ".join(package.dependencies), module=package.module)


def test_the_import_brings_hardly_more_than_the_package_itself(package: Package, tmp_path: Path) -> None:
    """Beyond what its dependencies bring: nothing of others, little of theirs, and no data."""
    modules, files = json.loads(python(tmp_path, "-c", filled(BROUGHT, package)).stdout)
    foreign = [x for x in modules if x.partition(".")[0] not in {package.module, *sys.stdlib_module_names}]
    assert [x for x in foreign if x.partition(".")[0] not in package.dependencies] == []
    assert len(foreign) <= 5, foreign
    assert len(modules) <= 40, modules
    assert files == []


def test_the_import_takes_a_small_part_of_the_time_of_its_dependencies(package: Package, tmp_path: Path) -> None:
    """50 ms where torch takes a second; `python -X importtime` shows where they go."""
    most = 1 / 16 if {"torch", "gensim"} & {*package.dependencies} else 2 / 3  # NumPy alone is ten times as fast
    assert any(float(python(tmp_path, "-c", filled(SHARE, package)).stdout) < most for _ in range(5))


def test_only_what_depends_on_torch_imports_it(package: Package, tmp_path: Path) -> None:
    code = f"import {package.module}, sys; print('torch' in sys.modules)"
    assert python(tmp_path, "-c", code).stdout.strip() == str(package.needs_torch)


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
