"""What can be read without running anything: files, copies, versions, independence."""

import ast
import re
import subprocess

from tree import PACKAGES, ROOT, Package

FILES = """
pyproject.toml CMakeLists.txt README.md CHANGELOG.md LICENSE
{source}/__init__.py {source}/__main__.py {source}/_reference.py {source}/py.typed {source}/csrc/*.cpp
tests/test_reference.py tests/test_ops.py tests/test_peers.py examples/quickstart.py {benchmarks}/bench_*.py
"""
SECTIONS = [
    "Install",
    "Use",
    "When not to use it",
    "Speed",
    "Results",
    "Against the paper",
    "Options",
    "Beside other implementations",
    "Citation",
]


def test_every_file_of_the_layout_is_there(package: Package) -> None:
    places = {"source": f"src/{package.module}", "benchmarks": f"../../benchmarks/{package.name}"}
    assert [file for file in FILES.format(**places).split() if not list(package.path.glob(file))] == []


def test_the_folder_carries_the_name_of_the_distribution(package: Package) -> None:
    assert package.project["name"] == package.name


def test_copies_are_identical(package: Package) -> None:
    first_of_its_kind = next(other for other in PACKAGES if other.needs_torch == package.needs_torch)
    pairs = [
        (package.path / "LICENSE", ROOT / "LICENSE"),
        (package.path / "CMakeLists.txt", first_of_its_kind.path / "CMakeLists.txt"),
        (package.source / "csrc" / "simd.h", PACKAGES[0].source / "csrc" / "simd.h"),
    ]
    assert [copy for copy, original in pairs if copy.read_bytes() != original.read_bytes()] == []


def test_a_copied_file_names_no_package(package: Package) -> None:
    for copy in (package.path / "CMakeLists.txt", package.source / "csrc" / "simd.h"):
        assert package.module not in copy.read_text()


def test_no_package_imports_another(package: Package) -> None:
    others = {other.module for other in PACKAGES} - {package.module}
    found = []
    for path in (path for folder in ("src", "tests", "examples") for path in (package.path / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes(), path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            found += [(path, name) for name in names if name.split(".")[0] in others]
    assert found == []


def test_the_version_heads_the_changelog(package: Package) -> None:
    changelog = (package.path / "CHANGELOG.md").read_text()
    released = re.search(r"^## \[(\d.*)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert released, "CHANGELOG.md has no heading like `## [1.0.0] - 2026-01-31`"
    assert released[1] == package.project["version"]


def test_the_readme_at_the_top_lists_the_package(package: Package) -> None:
    assert f"packages/{package.name}" in (ROOT / "README.md").read_text()


def test_the_readmes_are_read_in_the_same_order(package: Package) -> None:
    sections = re.findall(r"^## (.+)$", (package.path / "README.md").read_text(), re.MULTILINE)
    assert sections == SECTIONS


def test_no_file_names_a_folder_of_one_machine() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    texts = {file: (ROOT / file).read_text(errors="ignore") for file in files if (ROOT / file).is_file()}
    assert "noxfile.py" in texts
    machine = re.compile(r"(?<![\w.}])/(home|Users|root|work|opt|tmp|mnt)/\w+")
    assert {file: found[0] for file, text in texts.items() if (found := machine.search(text))} == {}
