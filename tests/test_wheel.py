"""What a wheel holds."""

import platform
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from tree import COMPILER, ROOT, Package


@pytest.fixture(scope="session")
def library(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not COMPILER:
        pytest.skip("there is no C++ compiler, so the wheel has no library")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".so")]
        return Path(archive.extract(name, tmp_path_factory.mktemp("wheel")))


def objdump(*options: str | Path) -> str:
    if not shutil.which("objdump"):
        pytest.skip("objdump, of binutils, is not installed")
    return subprocess.run(["objdump", *options], check=True, capture_output=True, text=True).stdout


def test_one_wheel_serves_every_python_of_a_platform(wheel: Path, package: Package) -> None:
    python = "py3-none" if package.needs_torch else "cp310-abi3"
    platforms = rf"(many)?linux_\w*{platform.machine()}" if COMPILER else "any"
    tag = wheel.stem.split("-", 2)[2]
    assert re.fullmatch(rf"{python}-{platforms}(\.{platforms})*", tag)


def test_the_wheel_is_small(wheel: Path, package: Package) -> None:
    """Less than 1 MB, and where a model is in it at most 6 MB for that."""
    files = zipfile.ZipFile(wheel).infolist()
    model = [file for file in files if file.filename.startswith(f"{package.module}/model/")]
    assert sum(file.file_size for file in model) <= 6_000_000
    assert wheel.stat().st_size - sum(file.compress_size for file in model) < 1_000_000


def test_the_wheel_has_every_module_types_and_the_model_but_no_cpp(wheel: Path, package: Package) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name and name[-1] != "/"}
    files = [path for kind in ("*.py", "*.pyi", "py.typed", "model/*") for path in package.source.rglob(kind)]
    expected = {path.relative_to(package.source.parent).as_posix() for path in files}
    assert {name for name in names if not name.endswith(".so")} == expected


def test_the_library_needs_only_the_runtimes_and_torch_where_declared(library: Path, package: Package) -> None:
    header = objdump("-p", library)
    needed = set(re.findall(r"NEEDED\s+(\S+)", header))
    assert ("libtorch_cpu.so" in needed) == package.needs_torch
    runtimes = r"lib(torch_cpu|stdc\+\+|gcc_s|c|m|pthread)\.so|ld-linux"
    assert [name for name in needed if not re.match(runtimes, name)] == []
    assert "RPATH" not in header
    assert "RUNPATH" not in header


def test_the_library_does_not_say_where_it_was_built(library: Path) -> None:
    content = library.read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages/" not in content


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors than x86-64 have one vector width")
@pytest.mark.parametrize("register", ["zmm", "ymm"])
def test_the_library_has_machine_code_for_wide_vectors(library: Path, register: str) -> None:
    floats, integers = r"(?:fn?m|mul|add|sqrt|div)\S*p[sd]", r"p(?:add|sub|mul|madd|max|min)\w+"
    assert len(re.findall(rf"\bv(?:{floats}|{integers}) .*%{register}", objdump("-d", library))) >= 2
