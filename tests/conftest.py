"""Every test that asks for a `package` runs for each of them."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tree import PACKAGES, ROOT, Package

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wheels", type=Path, help="the folder of the wheels to test")
    parser.addoption("--python", help="the interpreter of the environment to test, which has no pytest of its own")
    parser.addoption("--kernels", choices=["C++", "reference"], help="what serves the CPU there")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "package" in metafunc.fixturenames:
        metafunc.parametrize("package", PACKAGES, ids=lambda package: package.name, scope="session")


@pytest.fixture(scope="session")
def wheel(package: Package, request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("wheels")
    if folder is None:
        pytest.fail("the wheels to test are missing: run `nox -s contract`, which builds them, or pass --wheels DIR")
    [wheel] = folder.glob(f"{package.module}-{package.project['version']}-*.whl")
    return wheel


@pytest.fixture
def python(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., str]:
    """Run the interpreter of another environment in an empty folder, and return what it prints."""
    interpreter = request.config.getoption("python")
    if interpreter is None:
        pytest.fail("the environment to test is missing: run `nox -s alone together`, which make such")

    def run(*arguments: str | Path) -> str:
        command = [interpreter, *arguments]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.fixture(scope="session")
def report() -> ModuleType:
    """benchmarks/report.py, which needs nothing but Python."""
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
