"""Every test that asks for a `package` runs for each of them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from tree import PACKAGES, ROOT, Package


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wheels", type=Path, help="the folder of the wheels to test")


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


@pytest.fixture(scope="session")
def report() -> ModuleType:
    """benchmarks/report.py, which needs nothing but Python."""
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
