"""The bench itself, on workloads of a few microseconds: verdicts, exit codes, selection, processes, Ctrl-C, pages."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time

from harness import GPU, Contestant, Figure, MissingError, Outcome, Race, Study, Versus, at_most, same_bits

PACKAGES = ("rich",)


class Number(int):
    dtype = "int"
    shape = ()

    def __eq__(self, other):
        return Wrapped(int(self) == int(other))


class Wrapped:
    def __init__(self, value):
        self.value = value

    def all(self):
        return self.value


def waiting(seconds):
    return lambda: Contestant(lambda: time.sleep(seconds))


def absent():
    raise ImportError("no such peer")


def race(name, equal=lambda context: "equal", limit=1e9, **options):
    racers = {"ours": waiting(0.0), "theirs": waiting(0.001), "absent": absent}
    versus = Versus(("theirs", "not offered"), at_most(limit), headline=True), Versus("absent"), Versus("not offered")
    return Race(name, "about", lambda context: racers, equal, versus, clock="wall", seconds=0.02, **options)


def study(name, measure, **options):
    return Study(name, "about", measure, **options)


def without_data(context, outcome):
    if context.data is None:
        raise MissingError("this needs --data: a folder")
    outcome.figures.append(Figure("value", "ours", context.data, value=1.0))


def say_begun(*words):
    os.write(1, " ".join(["begun", str(os.getpid()), *words]).encode() + b"\\n")  # in one piece, as others do


def slow(context, outcome):
    with tempfile.TemporaryDirectory() as folder:
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        say_begun(str(sleeper.pid), folder)
        sleeper.wait()


def broken(context, outcome):
    raise RuntimeError("it broke")


def without_number(context, outcome):
    outcome.figures.append(Figure("value", "ours", "", value=float("nan")))


def process(context, outcome):
    begin = time.time()
    time.sleep(0.05)
    outcome.bars = {"pid": os.getpid(), "begin": begin, "end": time.time()}


"""


class Bench:
    """A folder of benchmarks like the real one, with workloads of its own."""

    def __init__(self, run: ModuleType, folder: Path) -> None:
        self.run, self.folder = run, folder

    def write(self, package: str, workloads: str, first: str = "") -> None:
        (self.folder / package).mkdir(exist_ok=True)
        source = f"{SOURCE}{first}\nWORKLOADS = [{workloads}]\n"
        (self.folder / package / "bench_it.py").write_text(source, encoding="utf-8")

    def __call__(self, *argv: str) -> int:
        return int(self.run.main([*argv, "--out", str(self.folder / "out")]))

    def result(self, pattern: str = "*-quick.json") -> dict[str, Any]:
        (path,) = (self.folder / "out").glob(pattern)
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def verdicts(self) -> dict[str, list[str]]:
        return {o["name"]: [f["verdict"] for f in o["figures"]] for o in self.result()["outcomes"]}

    def notes(self) -> list[tuple[str, str, str]]:
        return [(o["package"], o["name"], f["note"]) for o in self.result()["outcomes"] for f in o["figures"][:1]]

    def begin(self) -> subprocess.Popen[str]:
        """A run in a process of its own, and all that is said there."""
        command = [sys.executable, "-c", PROGRAM, ROOT / "benchmarks", self.folder, "--out", self.folder / "out"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import run

    monkeypatch.setattr(run, "HERE", tmp_path)
    return Bench(run, tmp_path)


def test_a_missed_target_does_not_fail_the_run(bench: Bench) -> None:
    bench.write("a", 'race("fast"), race("slow", limit=1e-9)')
    assert bench() == 0
    assert bench.verdicts() == {"fast": ["met", "missing"], "slow": ["missed", "missing"]}
    assert all(outcome["figures"][0]["samples"] for outcome in bench.result()["outcomes"])
    assert {outcome["figures"][0]["peer"] for outcome in bench.result()["outcomes"]} == {"theirs"}


@pytest.mark.parametrize(
    ("workload", "verdict"),
    [
        ('race("x", equal=lambda context: same_bits(Number(1), Number(2), "bits"))', "unequal"),
        ('study("x", broken)', "failed"),
        ('study("x", without_number)', "failed"),
    ],
)
def test_a_difference_and_a_breakdown_fail_it_and_the_others_still_run(
    bench: Bench, workload: str, verdict: str
) -> None:
    bench.write("a", f'{workload}, race("y")')
    assert bench() == 1
    assert bench.verdicts() == {"x": [verdict], "y": ["met", "missing"]}


def test_equal_results_are_timed(bench: Bench) -> None:
    bench.write("a", 'race("x", equal=lambda context: same_bits(Number(2), Number(2), "bits"))')
    assert bench() == 0
    assert bench.result()["outcomes"][0]["equal"] == "bits: equal bit for bit."


def test_packages_and_names_select(bench: Bench) -> None:
    bench.write("a", 'race("x"), race("y")')
    bench.write("b", 'study("z", broken)')
    bench.write("together", 'race("both")')
    assert bench("a", "together", "--only", "x", "--only", "bo") == 0
    run = bench.result()
    assert [(o["package"], o["name"]) for o in run["outcomes"]] == [("a", "x"), ("together", "both")]
    assert run["command"] == 'nox -s bench -- a together --only "x" --only "bo"'
    assert [set(o["versions"]) for o in run["outcomes"]] == [{"rich"}, {"rich"}]


def test_a_module_in_the_folder_is_that_folder_s(bench: Bench) -> None:
    for package in ("a", "b"):
        (bench.folder / package).mkdir()
        (bench.folder / package / "material.py").write_text(f"NAME = {package!r}\n", encoding="utf-8")
        source = f"from material import NAME\n{SOURCE}WORKLOADS = [race(NAME)]\n"
        for name in ("bench_it.py", "bench_that.py"):
            (bench.folder / package / name).write_text(source, encoding="utf-8")
    assert bench() == 0
    assert [(o["package"], o["name"]) for o in bench.result()["outcomes"]] == [(p, p) for p in "aabb"]


def test_no_record_of_a_breakdown_names_a_folder_of_the_machine(bench: Bench) -> None:
    bench.write("a", 'race("x")')
    path = bench.folder / "a" / "bench_it.py"
    path.write_text("import rich\nfrom bench_it import nothing\n", encoding="utf-8")
    assert bench() == 1
    assert str(bench.folder.parent) not in json.dumps(bench.result())


def test_what_lies_beside_a_bench_is_its_own(bench: Bench) -> None:
    """Packages have modules of the same name, and example folders that they put on the path."""
    show = 'study("{0}", lambda context, outcome: outcome.figures.append(Figure(material.NAME, later(), "")))'
    for package in ("a", "b"):
        for path, text in (
            ("material.py", f'NAME = "{package}"'),
            ("lazy.py", f'NAME = "{package}, later"'),
            ("examples/data.py", f'NAME = "example of {package}"'),
        ):
            (bench.folder / package / path).parent.mkdir(parents=True, exist_ok=True)
            (bench.folder / package / path).write_text(text, encoding="utf-8")
        bench.write(package, show.format(package))
        path = bench.folder / package / "bench_it.py"
        head = f"""
import sys
from pathlib import Path

import material

sys.path.insert(0, str(Path(__file__).parent / "examples"))
import data

assert data.NAME == "example of {package}"


def later():
    import lazy

    return lazy.NAME

"""
        path.write_text(head + path.read_text(encoding="utf-8"), encoding="utf-8")
        (bench.folder / package / "bench_too.py").write_text(
            f"import material\nPACKAGES = ()\nWORKLOADS = []\nassert material.NAME == {package!r}", encoding="utf-8"
        )
    assert bench() == 0
    figures = [outcome["figures"][0] for outcome in bench.result()["outcomes"]]
    assert [(f["name"], f["ours"]) for f in figures] == [("a", "a, later"), ("b", "b, later")]
    assert not {"material", "lazy", "data"} & sys.modules.keys()


def test_nothing_selected_is_said(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.write("a", 'race("x")')
    assert bench("--only", "nothing") == 2
    assert "Nothing was run" in capsys.readouterr().out
    assert not list(bench.folder.glob("out/*"))


def test_data_reaches_the_workload(bench: Bench) -> None:
    bench.write("a", 'study("x", without_data)')
    assert bench() == 0
    assert bench.verdicts() == {"x": ["missing"]}
    (bench.folder / "data").mkdir()
    for data in (str(bench.folder / "data"), "owner/name"):
        assert bench("--data", data) == 0
        assert bench.result()["outcomes"][0]["figures"][0]["peer"] == data
        assert bench.result()["command"] == "nox -s bench -- --data DATA"


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--nonsense"], "--nonsense"),
        (["c"], "no benchmark for c; there is a"),
        (["--data", "/not/here"], "there is no folder /not/here"),
        (["--from", "nowhere.json"], "nowhere.json cannot be read"),
        (["--from", "broken.json"], "broken.json is no JSON"),
        (["--from", "other.json"], "other.json does not hold a run"),
        (["--from", "whole.json", "half.json"], "half.json does not hold a run"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    bench: Bench, argv: list[str], what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.write("a", 'race("x")')
    bench()
    whole = bench.result()
    for path in bench.folder.glob("out/*"):
        path.unlink()
    half = {**whole, "outcomes": [{"package": "a", "name": "x"}]}
    for name, text in (
        ("broken", '{"format": 1'),
        ("other", "[1]"),
        ("whole", json.dumps(whole)),
        ("half", json.dumps(half)),
    ):
        (bench.folder / f"{name}.json").write_text(text, encoding="utf-8")
    monkeypatch.chdir(bench.folder)
    with pytest.raises(SystemExit) as ended:
        bench(*argv)
    assert ended.value.code == 2
    assert what in capsys.readouterr().err
    assert not list(bench.folder.glob("out/*"))


def test_a_file_in_the_place_of_the_folder_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.write("a", 'race("x")')
    (bench.folder / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit):
        bench()
    assert "cannot make the folder" in capsys.readouterr().err
    assert (bench.folder / "out").read_text(encoding="utf-8") == "mine"


def test_the_page_is_made_again_from_a_run(bench: Bench) -> None:
    bench.write("a", 'race("x")')
    bench()
    (path,) = bench.folder.glob("out/*.json")
    page = bench.folder / "out" / "index.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    assert bench("--from", str(path)) == 0
    assert page.read_text(encoding="utf-8") == before


def test_one_process_after_another_measures_a_package(bench: Bench) -> None:
    for package in ("b", "a", "c"):
        bench.write(package, 'study("x", process), study("y", process)')
    assert bench("c", "b", "a") == 0
    outcomes = bench.result()["outcomes"]
    assert [(o["package"], o["name"]) for o in outcomes] == [(p, name) for p in "abc" for name in "xy"]
    pids = [outcome["bars"]["pid"] for outcome in outcomes]
    assert pids[::2] == pids[1::2]
    assert len({os.getpid(), *pids}) == 4
    times = [outcome["bars"][key] for outcome in outcomes for key in ("begin", "end")]
    assert times == sorted(times)
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("deed", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "died of signal 9 (Killed)"),
        ("ctypes.string_at(0)", "died of signal 11 (Segmentation fault)"),
        ("sys.exit(3)", "ended with 3"),
    ],
)
def test_a_process_that_dies_fails_what_it_was_at_and_the_rest_of_its_package(
    bench: Bench, deed: str, how: str
) -> None:
    bench.write("a", f'race("x"), study("dies", lambda *_: {deed}), race("y"), race("z")')
    bench.write("b", 'race("x")')
    assert bench() == 1
    rest = f"not run: the process {how} at dies"
    notes = [("a", "dies", f"its process {how}"), ("a", "y", rest), ("a", "z", rest)]
    assert bench.notes()[1:4] == notes
    assert [o["figures"][0]["verdict"] for o in bench.result()["outcomes"]] == ["met", *["failed"] * 3, "met"]
    assert {tuple(o["versions"]) for o in bench.result()["outcomes"]} == {("rich",)}


def test_a_process_that_dies_as_it_loads_or_waits_fails_its_package(bench: Bench) -> None:
    path = bench.folder / "b" / "pid"
    bench.write("a", 'race("x")', "os._exit(3)")
    (bench.folder / "a" / "bench_first.py").write_text(f'{SOURCE}WORKLOADS = [race("first")]\n', encoding="utf-8")
    (bench.folder / "a" / "bench_last.py").write_text(SOURCE, encoding="utf-8")
    bench.write("b", 'study("waits", process)', f'open({str(path)!r}, "w").write(str(os.getpid()))')
    bench.write("aa", f'study("kills", lambda *_: os.kill(int(open({str(path)!r}).read()), signal.SIGKILL))')
    assert bench() == 1
    rest = "not run: the process ended with 3 at bench_it"
    assert bench.notes() == [
        ("a", "bench_it", "its process ended with 3"),
        ("a", "bench_last", rest),
        ("a", "first", rest),
        ("b", "waits", "its process died of signal 9 (Killed)"),
    ]


TORCH = """
__version__ = "0"


class cuda:
    is_available = is_initialized = lambda: {there}
    get_device_name = lambda: "a device"


def get_num_threads():
    return 1
"""


@pytest.mark.parametrize("there", [True, False])
def test_the_machine_has_the_gpu_that_a_process_used(
    bench: Bench, there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (bench.folder / "modules").mkdir()
    (bench.folder / "modules" / "torch.py").write_text(TORCH.format(there=there), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(bench.folder / "modules"))
    monkeypatch.syspath_prepend(bench.folder / "modules")
    bench.write("a", 'study("x", process, profiles=GPU), study("y", process)', "import torch")
    bench.write("b", 'study("x", process, profiles=GPU)')
    assert bench("--gpu") == (0 if there else 2)
    if there:
        assert bench.result("*-gpu.json")["machine"]["gpu"] == "a device"
        assert [o["package"] for o in bench.result("*-gpu.json")["outcomes"]] == ["a", "b"]
    else:
        assert "torch 0 sees no CUDA device" in capsys.readouterr().out


PROGRAM = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv.pop(1))
import run

run.HERE = Path(sys.argv.pop(1))
sys.exit(run.main())
"""


def begun(process: subprocess.Popen[str]) -> list[str]:
    """What follows `begun` in what is said."""
    assert process.stdout is not None
    while "begun" not in (line := process.stdout.readline()):
        assert line
    return line.split()[1:]


def gone(pid: int | str) -> bool:
    """Whether a process ends within seconds; nobody may have asked for its status."""
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
        if state.strip()[:1] in ("", "Z"):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("first", ['race("x"), ', ""])
def test_ctrl_c_keeps_what_was_measured(bench: Bench, first: str) -> None:
    bench.write("a", f'{first}study("long", slow), race("never")')
    bench.write("b", 'study("never", process)', f'open({str(bench.folder / "pid")!r}, "w").write(str(os.getpid()))')
    out = bench.folder / "out"
    with bench.begin() as process:
        *pids, folder = begun(process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert all(gone(pid) for pid in (*pids, (bench.folder / "pid").read_text()))
    assert not Path(folder).exists()
    if not first:
        assert "Nothing was run: stopped" in said
        assert not list(out.glob("*"))
        return
    run = bench.result("*-quick-stopped.json")
    assert [(o["name"], o["figures"][0]["verdict"]) for o in run["outcomes"]] == [("x", "met")]
    assert run["note"] == "stopped by the user after 1 of 4 workloads"
    assert run["note"] in said
    assert run["note"] in (out / "index.html").read_text(encoding="utf-8")


def test_ctrl_c_while_packages_load_ends_them(bench: Bench) -> None:
    for package in ("a", "b"):
        bench.write(package, 'race("x")', "say_begun(); time.sleep(60)")
    with bench.begin() as process:
        pids = [*begun(process), *begun(process)]
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate()
    assert process.returncode == 130
    assert said == "Nothing was run: stopped by the user after 0 of its workloads.\n"
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("workload", "first"),
    [('study("long", slow)', ""), ('race("x")', "say_begun(); time.sleep(60)")],
)
def test_processes_of_packages_end_with_a_run_that_is_killed(bench: Bench, workload: str, first: str) -> None:
    bench.write("a", workload, first)
    with bench.begin() as process:
        pids = [word for word in begun(process) if word.isdigit()]
        process.kill()
        assert all(gone(pid) for pid in pids)


def test_a_terminal_shows_a_bar_with_the_time_left(bench: Bench) -> None:
    bench.write("a", 'study("x", lambda context, outcome: time.sleep(0.5)), race("y")')
    command = [sys.executable, "-c", PROGRAM, ROOT / "benchmarks", bench.folder, "--out", bench.folder / "out"]
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        said, end = b"", time.monotonic() + 60
        with suppress(OSError):  # which ends it: the other side is closed
            while time.monotonic() < end:
                said += os.read(master, 65536)
    os.close(master)
    assert process.returncode == 0
    assert b"0/2, about 0:10 left" in said
    assert b"1/2, about " in said


def test_time_left_follows_the_pace(bench: Bench) -> None:
    from progress import Watch
    from rich.console import Console

    with Watch(Console(quiet=True), [100.0, 100.0, 200.0]) as watch:
        assert watch.left() == 400
        watch.start("a")
        assert watch.left(50) == 350
        watch.done("a", 210.0)  # twice as slow as expected
        assert watch.left() == 600
