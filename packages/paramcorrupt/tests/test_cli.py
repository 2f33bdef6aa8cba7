"""The command line: tables, reports, exit codes, and one line for each thing that can be wrong."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcorrupt import Corruption, Faults, _patching, corrupted, corruption, models
from paramcorrupt.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MINE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

x = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    y = model()(x).argmax(1)
batches = [(x[:32], y[:32]), (x[32:], y[32:])]
empty = []

class Failing(nn.Linear):
    def forward(self, x):
        raise ValueError("this model\\nis ill")

def ill():
    return Failing(6, 4)

def bad():
    raise FileNotFoundError("the data moved")

class BadBatches:
    def __iter__(self):
        yield x, y
        raise KeyError("lost")

lost = BadBatches()

class Interrupted:
    def __iter__(self):
        raise KeyboardInterrupt
    def __len__(self):
        return 1

interrupted = Interrupted()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module and the weights of its model."""
    (tmp_path / "mine_of_cli.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    save_file(models.load("mine_of_cli:model").state_dict(), "model.safetensors")
    yield tmp_path
    sys.modules.pop("mine_of_cli", None)


class Ran:
    """An exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*arguments: object) -> Ran:
        code = main([str(x) for x in arguments])
        return Ran(code, *capsys.readouterr())

    return call


ON = ("mine_of_cli:model", "--data", "mine_of_cli:batches")


def listed(text: str) -> list[list[str]]:
    """The rows of the table in the output, which is what follows the empty line."""
    return [re.split(r"  +", line.strip()) for line in text.partition("\n\n")[2].splitlines()]


# --- commands --------------------------------------------------------------------------------------------------------


def test_a_scan_is_a_table_of_groups_and_reports(run: Callable[..., Ran]) -> None:
    reports = ("--json", "r.json", "--csv", "r.csv", "--html", "r.html", "--corruption", "worst.safetensors")
    done = run("scan", *ON, "--eps-rel", 0.05, "--verify", 2, "--random", 3, *reports)
    assert (done.code, done.err) == (0, "")
    heading, *rows = listed(done.out)
    assert heading[:3] == ["group", "weights", "eps"]
    assert {row[0] for row in rows} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert [row[5] == "-" for row in rows] == [False, False, True, True]
    document = json.loads(Path("r.json").read_text())
    assert document["facts"]["eps_relative"] == 0.05
    with open("r.csv") as file:
        assert [row["group"] for row in csv.DictReader(file)] == [row[0] for row in rows]
    assert "<svg" in Path("r.html").read_text()
    weights = load_file("model.safetensors")
    size = math.sqrt(sum(x.double().square().sum().item() for x in weights.values()))
    worst = Corruption.load("worst.safetensors")
    assert worst.n == worst.k == sum(x.numel() for x in weights.values())
    assert worst.eps == pytest.approx(0.05 * size, rel=1e-6)


def test_groups_are_a_name_patterns_or_names_of_patterns(run: Callable[..., Ran]) -> None:
    for given, expected in (
        (["module"], {"0", "2"}),
        (["model"], {"model"}),
        (["*.bias", "0.*"], {"*.bias", "0.*", "other"}),
        (["shifts=*.bias", "first=0.*"], {"shifts", "first", "other"}),
    ):
        done = run("scan", *ON, "--n", 4, "--verify", 0, "--groups", *given)
        assert {row[0] for row in listed(done.out)[1:]} == expected


def test_long_tables_are_cut_and_told_to_be(run: Callable[..., Ran]) -> None:
    done = run("scan", *ON, "--n", 4, "--verify", "all", "--top", 2)
    assert done.out.endswith("... and 2 more (--top 0 shows all)\n")
    assert len(listed(run("scan", *ON, "--n", 4, "--top", 0).out)) == 5


def test_a_curve_has_a_row_for_each_size_and_kind(run: Callable[..., Ran]) -> None:
    done = run("curve", *ON, "--eps", 0.1, 0.5, "--draws", 2, "--n", 20, "--json", "c.json", "--html", "c.html")
    assert (done.code, done.err) == (0, "")
    rows = listed(done.out)[1:]
    assert [row[:2] for row in rows] == [[kind, eps] for kind in ("gradient", "random") for eps in ("0.1", "0.5")]
    assert json.loads(Path("c.json").read_text())["schema"] == "paramcorrupt/curve/1"
    done = run("curve", *ON, "--eps-rel", 0.1, "--kinds", "gradient", "--p", "inf")
    assert [row[0] for row in listed(done.out)[1:]] == ["gradient"]


def test_a_gate_fails_with_1_and_passes_with_0(run: Callable[..., Ran]) -> None:
    rules = ("--max-drop", 100, "--max-increase", 1e-6)
    done = run("gate", *ON, "--eps-rel", 0.05, *rules, "--junit", "gate.xml", "--json", "gate.json")
    assert (done.code, done.err) == (1, "")
    assert [row[:2] for row in listed(done.out)[1:]] == [["max_drop", "yes"], ["max_increase", "no"]]
    cases = list(ElementTree.parse("gate.xml").getroot().iter("testcase"))
    assert [(case.get("name"), case.find("failure") is not None) for case in cases] == [
        ("max_drop", False),
        ("max_increase", True),
    ]
    assert run("gate", *ON, "--eps-rel", 0.05, "--baseline", "gate.json").code == 0
    assert run("gate", *ON, "--eps", 0.0, "--max-increase", 0).code == 0


def test_flips_of_a_file_are_those_of_the_plan_and_of_the_seed(run: Callable[..., Ran]) -> None:
    done = run(
        "bitflip", "model.safetensors", "--count", 9, "--seed", 3, "-o", "a.safetensors", "--plan", "p.safetensors"
    )
    assert (done.code, done.err) == (0, "")
    assert "9 faults" in done.out
    assert "a.safetensors: 9 bits changed" in done.out
    before, after = Path("model.safetensors").read_bytes(), Path("a.safetensors").read_bytes()
    assert sum((x ^ y).bit_count() for x, y in zip(before, after, strict=True)) == 9
    assert Faults.load("p.safetensors").count == 9
    assert run("apply", "model.safetensors", "p.safetensors", "--output", "b.safetensors").code == 0
    run("bitflip", "model.safetensors", "--count", 9, "--seed", 3, "--output", "c.safetensors", "--quiet")
    assert (
        Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes() == Path("c.safetensors").read_bytes()
    )
    run("bitflip", "model.safetensors", "--count", 9, "--seed", 4, "--output", "c.safetensors")
    assert Path("a.safetensors").read_bytes() != Path("c.safetensors").read_bytes()


def test_faults_are_of_the_kind_and_in_the_tensors_that_were_asked_for(run: Callable[..., Ran]) -> None:
    options = ("--fault", "burst", "--width", 3, "--bits", "mantissa", "--tensors", "*.bias", "--csv", "f.csv")
    done = run("bitflip", "model.safetensors", "--rate", 0.02, "--seed", 0, *options)
    assert (done.code, done.err) == (0, "")
    assert "nothing written without --output" in done.out
    with open("f.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {row["tensor"] for row in rows} <= {"0.bias", "2.bias"}
    assert {row["field"] for row in rows} == {"mantissa"}


def test_faults_in_a_model_are_measured(run: Callable[..., Ran]) -> None:
    done = run("bitflip", "--model", *ON, "--count", 1, "--bits", 30, "--tensors", "0.bias", "--seed", 1)
    assert (done.code, done.err) == (0, "")
    assert "1 fault in 1 tensor, seed 1" in done.out
    assert re.search(r"accuracy 100\.00 % -> \d", done.out)


def test_apply_writes_what_corrupted_holds(run: Callable[..., Ran]) -> None:
    weights = load_file("model.safetensors")
    change = corruption({name: torch.ones_like(x) for name, x in weights.items()}, eps=0.5)
    change.save("worst.safetensors")
    done = run("apply", "model.safetensors", "worst.safetensors", "--output", "changed.safetensors")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"changed.safetensors: {change.k} weights changed, by 0.5")
    found = load_file("changed.safetensors")
    with corrupted(weights, change):
        assert all(torch.equal(found[name], x) for name, x in weights.items())


def test_a_difference_lists_what_moved_the_furthest_first(run: Callable[..., Ran]) -> None:
    weights = load_file("model.safetensors")
    weights["0.bias"] += 1
    weights["2.weight"][0, 0] += 0.01
    save_file(weights, "other.safetensors")
    done = run("diff", "model.safetensors", "other.safetensors", "--json", "d.json")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("2 of 4 tensors differ.\n")
    assert [row[0] for row in listed(done.out)[1:]] == ["0.bias", "2.weight"]
    assert run("diff", "model.safetensors", "model.safetensors").out == "Nothing differs.\n"
    run("diff", "model.safetensors", "model.safetensors", "--json", "e.json")
    done = run("diff", "d.json", "e.json")
    assert [row[0] for row in listed(done.out)[1:]] == ["0.bias", "2.weight"]


def test_bits_are_ranked_and_the_worst_of_them_protected(run: Callable[..., Ran]) -> None:
    pytest.importorskip("paramcorrupt.vulnerability")
    options = ("--bits", 20, 30, "--groups", "model", "--half-width", 0.2, "--max-faults", 64, "--json", "v.json")
    done = run("vulnerability", *ON, *options)
    assert (done.code, done.err) == (0, "")
    assert [row[1] for row in listed(done.out)[1:]] == ["30", "20"]
    done = run("protect", "v.json", "--budget", 0.5)
    assert done.code == 0
    assert listed(done.out)[1][1] == "30"


# --- what can be wrong -----------------------------------------------------------------------------------------------


def files() -> list[Path]:
    """What lies in the present folder, but for what Python writes of the modules that it imports."""
    return sorted(path for path in Path().iterdir() if path.name != "__pycache__")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND; see paramcorrupt --help"),
        ("sing", "invalid choice: 'sing'"),
        ("scan", "MODEL must be given, such as mine:name"),
        ("scan mine_of_cli:model", "--data must be given"),
        ("scan mine_of_cli:model --model mine_of_cli:model --data mine_of_cli:batches", "must not both be given"),
        ("scan mine_of_cli:modal --data mine_of_cli:batches", "did you mean model?"),
        ("scan nowhere_of_cli:model --data mine_of_cli:batches", "neither installed nor in"),
        ("scan {on} --eps nan", "eps"),
        ("scan {on} --eps -1", "eps"),
        ("scan {on} --eps 1 --eps-rel 1", "not allowed with argument"),
        ("scan {on} --eps one", "invalid float value: 'one'"),
        ("scan {on} --p 0.5", "p must be"),
        ("scan {on} --n 0", "n must be"),
        ("scan {on} --verify -1", "must be at least 0, got -1"),
        ("scan {on} --seed -1", "seed must be"),
        ("scan {on} --limit 0", "must be at least 1, got 0"),
        ("scan {on} --batch-size 4", "batch_size must be left out"),
        ("scan {on} --groups *nothing*", "groups must match"),
        ("scan {on} --loss hinge", "loss must be"),
        ("scan {on} --device abacus", "--device must be"),
        ("scan {on} --weights nowhere.pt", "exists, got nowhere.pt"),
        ("scan {on} --weights nowhere.safetensors", "exists, got nowhere.safetensors"),
        ("scan {on} --json nowhere/r.json", "--json must be in a folder that exists, got nowhere/r.json"),
        ("scan {on} --html .", "--html must be a file, got the folder ."),
        ("scan mine_of_cli:model --data mine_of_cli:empty", "at least one batch"),
        ("scan mine_of_cli:model --data mine_of_cli:model", "must give batches, got the module Sequential"),
        ("curve {on}", "one of the arguments --eps --eps-rel is required"),
        ("gate {on} --eps 0.1", "gate must have a rule"),
        ("gate {on} --eps 0.1 --baseline nowhere.json", "nowhere.json"),
        ("gate {on} --eps 0.1 --baseline mine_of_cli.py", "mine_of_cli.py must be JSON"),
        ("bitflip --count 1 --seed 0", "either CHECKPOINT or --model must be given"),
        ("bitflip model.safetensors --seed 0", "one of the arguments --rate --count is required"),
        ("bitflip model.safetensors --count 1", "required: --seed"),
        ("bitflip model.safetensors --count 99999 --seed 0", "count must be from 0 to"),
        ("bitflip model.safetensors --rate 2 --seed 0", "rate must be from 0 to 1"),
        ("bitflip model.safetensors --count 1 --bits 32 --seed 0", "bits must be in [0, 31]"),
        ("bitflip model.safetensors --count 1 --bits high --seed 0", "bits must be positions or among"),
        ("bitflip model.safetensors --count 1 --seed 0 --tensors head*", "--tensors must match a tensor"),
        ("bitflip model.safetensors --count 1 --seed 0 --format int4", "must be PATTERN=FORMAT"),
        ("bitflip model.safetensors --count 1 --seed 0 --data mine_of_cli:batches", "--data must go with --model"),
        ("bitflip model.safetensors --count 1 --seed 0 -o model.safetensors", "must not be the checkpoint itself"),
        ("bitflip model.safetensors --count 1 --seed 0 -o .", "output must be a file"),
        ("bitflip model.safetensors --count 1 --seed 0 -o a/b", "--output must be in a folder that exists"),
        ("bitflip nowhere.safetensors --count 1 --seed 0", "exists, got nowhere.safetensors"),
        ("bitflip mine_of_cli.py --count 1 --seed 0", "not a safetensors file"),
        ("apply model.safetensors model.safetensors -o a.safetensors", "must be a corruption or a plan of faults"),
        ("apply model.safetensors nowhere -o a.safetensors", "No such file or directory: nowhere"),
        ("diff model.safetensors nowhere.safetensors", "exists, got nowhere.safetensors"),
        ("diff model.safetensors mine_of_cli.py", "not a safetensors file"),
        ("diff . model.safetensors --csv nowhere/x.csv", "--csv must be in a folder that exists"),
        ("protect nowhere.json --budget 1", "No such file or directory: nowhere.json"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(arguments: str, message: str, run: Callable[..., Ran]) -> None:
    before = files()
    done = run(*arguments.replace("{on}", " ".join(ON)).split())
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.startswith("paramcorrupt")
    assert done.err.count("\n") == 1
    assert files() == before


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("ill", "batches", "raised ValueError (mine_of_cli.py:17): this model is ill; --debug shows the traceback"),
        ("bad", "batches", "raised FileNotFoundError (mine_of_cli.py:23): the data moved"),
        ("model", "bad", "raised FileNotFoundError"),
        ("model", "lost", "raised KeyError (mine_of_cli.py:28): 'lost'"),
    ],
)
def test_what_the_model_or_the_data_raises_is_told_with_exit_code_3(
    model: str, data: str, message: str, run: Callable[..., Ran]
) -> None:
    arguments = ("scan", f"mine_of_cli:{model}", "--data", f"mine_of_cli:{data}", "--json", "r.json")
    done = run(*arguments)
    assert (done.code, done.out) == (3, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not Path("r.json").exists()
    assert "Traceback (most recent call last)" in run(*arguments, "--debug").err


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    done = run("scan", "mine_of_cli:ill", "--data", "mine_of_cli:batches", "--json", "r.json")
    assert done.code == 2
    assert "--json must be in a folder that can be written to, got r.json: Permission denied" in done.err


def test_an_older_report_stays_when_the_command_fails(run: Callable[..., Ran]) -> None:
    Path("r.json").write_text("older")
    run("scan", "mine_of_cli:ill", "--data", "mine_of_cli:batches", "--json", "r.json")
    assert Path("r.json").read_text() == "older"
    run("scan", *ON, "--n", 4, "--json", "r.json")
    assert json.loads(Path("r.json").read_text())["schema"] == "paramcorrupt/scan/1"


def test_ctrl_c_is_exit_code_130_without_a_word(run: Callable[..., Ran]) -> None:
    done = run("scan", "mine_of_cli:model", "--data", "mine_of_cli:interrupted")
    assert (done.code, done.out, done.err) == (130, "", "")


def test_ctrl_c_leaves_no_half_of_a_checkpoint(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_patching, "_write", interrupt)
    before = files()
    done = run("bitflip", "model.safetensors", "--count", 3, "--seed", 0, "-o", "a.safetensors")
    assert (done.code, done.out, done.err) == (130, "", "")
    assert files() == before


def test_warnings_are_one_line(run: Callable[..., Ran], here: Path) -> None:
    (here / "flat_of_cli.py").write_text("import torch\nloss = lambda output, target: output.sum() * 0\n")
    done = run("scan", *ON, "--loss", "flat_of_cli:loss")
    sys.modules.pop("flat_of_cli", None)
    assert done.code == 0
    assert done.err == "paramcorrupt: warning: all gradients are zero: no change is predicted to raise the loss\n"


@pytest.mark.parametrize(
    "command", ["", "scan", "curve", "gate", "bitflip", "vulnerability", "protect", "apply", "diff"]
)
def test_help_shows_examples_that_can_be_parsed(command: str, run: Callable[..., Ran]) -> None:
    from paramcorrupt.cli import _parser

    done = run(*command.split(), "--help")
    assert (done.code, done.err) == (0, "")
    lines = [line.strip() for line in done.out.partition("examples:")[2].splitlines()]
    examples = [
        re.split(r"   +", line)[0].replace("'", "").split()[1:] for line in lines if line[:13] == "paramcorrupt "
    ]
    assert len(examples) >= 2
    for example in examples:
        if example[0] != "COMMAND":
            _parser().parse_args(example)


# --- a process of its own --------------------------------------------------------------------------------------------


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "paramcorrupt", *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_nobody_reading_the_output_is_no_error(here: Path) -> None:
    process = start("bitflip", "model.safetensors", "--count", "3", "--seed", "0")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
    process.stderr.close()
