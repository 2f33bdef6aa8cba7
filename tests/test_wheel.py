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


def test_one_wheel_serves_every_python_of_a_platform(wheel: Path) -> None:
    platforms = rf"(many)?linux_\w*{platform.machine()}" if COMPILER else "any"
    tag = wheel.stem.split("-", 2)[2]
    assert re.fullmatch(rf"py3-none-{platforms}(\.{platforms})*", tag)


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 1_000_000


def test_the_wheel_has_every_module_and_types_but_no_cpp(wheel: Path, package: Package) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name and name[-1] != "/"}
    modules = {path.relative_to(package.source.parent).as_posix() for path in package.source.rglob("*.py")}
    assert {name for name in names if not name.endswith(".so")} == modules | {f"{package.module}/py.typed"}


def test_the_library_needs_only_torch_and_the_c_and_cpp_runtimes(library: Path) -> None:
    header = objdump("-p", library)
    needed = set(re.findall(r"NEEDED\s+(\S+)", header))
    assert "libtorch_cpu.so" in needed
    assert [name for name in needed if not re.match(r"lib(torch_cpu|stdc\+\+|gcc_s|c|m)\.so|ld-linux", name)] == []
    assert "RPATH" not in header
    assert "RUNPATH" not in header


def test_the_library_does_not_say_where_it_was_built(library: Path) -> None:
    content = library.read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages/" not in content


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors than x86-64 have one vector width")
@pytest.mark.parametrize("register", ["zmm", "ymm"])
def test_the_library_has_machine_code_for_wide_vectors(library: Path, register: str) -> None:
    assert len(re.findall(rf"\bv(?:fn?m|mul|add|sqrt|div)\S*p[sd] .*%{register}", objdump("-d", library))) >= 2
