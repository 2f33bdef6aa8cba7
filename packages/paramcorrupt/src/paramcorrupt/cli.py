"""The command `paramcorrupt`: options, errors, exit codes. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from ._failures import INTERRUPTED, PIPE, explain

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_ABOUT = "What can this checkpoint not afford to lose? Worst-case changes of weights, bit flips, release gates."
_EPILOG = """\
examples:
  paramcorrupt scan mine:model --data mine:batches              which tensors are fragile?
  paramcorrupt scan torchvision:resnet18 --data mine:batches --html report.html
  paramcorrupt curve mine:model --data mine:batches --eps 0.05 0.2 0.5
  paramcorrupt gate mine:model --data mine:batches --eps-rel 0.01 --max-drop 2 --junit gate.xml
  paramcorrupt bitflip model.safetensors --rate 1e-6 --seed 0 --output flipped.safetensors
  paramcorrupt apply model.safetensors worst.safetensors --output changed.safetensors
  paramcorrupt diff model.safetensors changed.safetensors

`mine:model` is the function, class or object `model` in mine.py here: without arguments it gives a torch module.
`paramcorrupt COMMAND --help` tells more. `python -m paramcorrupt` tells versions and kernels.

exit codes: 0 done, 1 gate failed, 2 bad usage or input, 3 the model or the data raised, 130 interrupted
"""
_MODEL = (
    "module:callable, torchvision:resnet18 (torchvision:resnet18:none: untrained), or a folder or id of Hugging Face"
)
_DATA = "module:callable that gives batches or a torch Dataset, or the folder of a Hugging Face data set"
_GROUPS = "tensor, module, model, or patterns of names such as '*attn*' or name='*attn*' (default: tensor)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: default: the arguments of the process.

    Returns:
        The exit code: 0 done, 1 gate failed, 2 bad usage or input, 3 the model or the data raised, 130 interrupted,
        141 when nobody reads the output. An error is one line on stderr.
    """
    try:
        options = _parser().parse_args(argv)
    except SystemExit as ended:  # of --help, --version and wrong usage
        return int(ended.code or 0)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning  # type: ignore[assignment]  # it looks at the message only
        try:
            code: int = options.run(options)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
            return PIPE
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            if options.debug:
                sys.excepthook(type(error), error, error.__traceback__)
            code, reason = explain(error)
            sys.stderr.write(f"paramcorrupt: error: {reason}\n")
    return code


def _show_warning(message: Warning | str, *_: Any) -> None:
    sys.stderr.write(f"paramcorrupt: warning: {message}\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Texts beside the options, in lines that are not shorter than need be."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(
            prog, **{"max_help_position": 26, "width": min(110, max(60, get_terminal_size().columns - 2))} | options
        )


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line, as all errors are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "paramcorrupt",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"paramcorrupt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for add in (_scan, _curve, _gate, _bitflip, _vulnerability, _protect, _apply, _diff):
        add(commands)
    return parser


def _command(commands: Any, name: str, arguments: str, about: str, examples: str) -> argparse.ArgumentParser:
    """A command with what all have."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog="examples:\n" + "\n".join(f"  paramcorrupt {name} {line}" for line in examples.splitlines()),
        usage=f"paramcorrupt {name} {arguments} [options]",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )

    def run(options: Any) -> int:
        from . import _commands

        code: int = getattr(_commands, f"run_{name}")(options)
        return code

    parser.set_defaults(run=run)
    return parser


def _reports(parser: argparse.ArgumentParser, *, junit: bool = False) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", metavar="FILE", help="the whole result, which diff and --baseline read")
    group.add_argument("--csv", metavar="FILE", help="the rows")
    group.add_argument("--html", metavar="FILE", help="a page with figures, in one file, that needs no network")
    if junit:
        group.add_argument("--junit", metavar="FILE", help="a test case for each rule, which build servers read")
    group.add_argument("--top", type=_natural, default=20, metavar="N", help="rows of the table (default: 20; 0: all)")
    group.add_argument("--quiet", action="store_true", help="no progress on stderr, where it is shown in a terminal")
    group.add_argument("--debug", action="store_true", help="the traceback of an error")


def _inputs(parser: argparse.ArgumentParser, *, loss: bool = True) -> None:
    parser.add_argument("reference", nargs="?", metavar="MODEL", help=_MODEL)
    group = parser.add_argument_group("model and data")
    group.add_argument("--model", metavar="MODEL", help="the same as MODEL")
    _weights(group)
    group.add_argument("--data", metavar="DATA", help=_DATA)
    group.add_argument("--split", help="of a data set with several (default: validation, or else test)")
    group.add_argument(
        "--batch-size", type=_positive, metavar="N", help="examples of a batch of a data set (default: 32)"
    )
    group.add_argument("--limit", type=_positive, metavar="N", help="only the first N examples")
    if loss:
        text = "cross_entropy, lm, or module:callable of (output, target) (default: what is usual for the model)"
        group.add_argument("--loss", default="auto", metavar="LOSS", help=text)
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")


def _weights(group: Any) -> None:
    text = "weights of the model: safetensors, or .pt, .pth, .th, of which only weights are read"
    group.add_argument("--weights", metavar="FILE", help=text)
    _trust(group)


def _trust(group: Any) -> None:
    text = "run the code in a .pt, .pth or .th that needs it, which may do anything"
    group.add_argument("--trust-pickle", action="store_true", help=text)


def _budget(parser: argparse.ArgumentParser, *, several: bool = False, default: str = "") -> None:
    group = parser.add_argument_group("corruption")
    either = group.add_mutually_exclusive_group(required=not default)
    count: dict[str, Any] = {"nargs": "+"} if several else {}
    either.add_argument("--eps", type=float, metavar="EPS", help="its p-norm, in units of the weights", **count)
    text = f"its p-norm as a share of that of the weights{default}"
    either.add_argument("--eps-rel", type=float, metavar="R", help=text, **count)
    group.add_argument("--p", type=float, default=2.0, help="exponent of the norm, 1 to inf (default: 2)")
    group.add_argument("--n", type=int, help="how many weights may change (default: all)")
    group.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")


def _scan(commands: Any) -> None:
    parser = _command(
        commands,
        "scan",
        "MODEL --data DATA",
        "rank tensors by what the worst small change of each costs",
        "mine:model --data mine:batches\n"
        "torchvision:resnet18 --data mine:dataset --limit 500 --html report.html\n"
        "./llama --data ./wikitext --groups '*attn*' '*mlp*' '*norm*' --verify all\n"
        "mine:model --weights resnet20.th --data mine:batches --eps-rel 0.02 --random 10 --json report.json",
    )
    _inputs(parser)
    _budget(parser, default=" of each group (default: 0.02)")
    group = parser.add_argument_group("scan")
    group.add_argument("--groups", nargs="+", default=["tensor"], metavar="G", help=_GROUPS)
    group.add_argument(
        "--verify", type=_count, default=5, metavar="M", help="groups that are measured, or all (default: 5)"
    )
    text = "random changes of the same size that each is compared with (default: 0)"
    group.add_argument("--random", type=_natural, default=0, metavar="K", help=text)
    text = "write the worst change of all weights together, for apply and paramcorrupt.Corruption.load"
    group.add_argument("--corruption", metavar="FILE", help=text)
    _reports(parser)


def _curve(commands: Any) -> None:
    parser = _command(
        commands,
        "curve",
        "MODEL --data DATA (--eps EPS ... | --eps-rel R ...)",
        "measure the loss over the size of the worst change and of random ones",
        "mine:model --data mine:batches --eps 0.05 0.2 0.5\n"
        "mine:model --data mine:batches --eps-rel 0.001 0.01 --n 1000 --draws 20 --html curve.html",
    )
    _inputs(parser)
    _budget(parser, several=True)
    group = parser.add_argument_group("curve")
    kinds = ("gradient", "random")
    group.add_argument("--kinds", nargs="+", choices=kinds, default=list(kinds), help="of changes (default: both)")
    group.add_argument(
        "--draws", type=_positive, default=10, metavar="N", help="random changes of a size (default: 10)"
    )
    _reports(parser)


def _gate(commands: Any) -> None:
    parser = _command(
        commands,
        "gate",
        "MODEL --data DATA (--eps EPS | --eps-rel R)",
        "pass or fail by what the worst small change of the weights costs; exit code 1 when it fails",
        "mine:model --data mine:batches --eps-rel 0.01 --max-drop 2 --junit gate.xml\n"
        "mine:model --data mine:batches --eps-rel 0.01 --baseline last.json --json this.json",
    )
    _inputs(parser)
    _budget(parser)
    group = parser.add_argument_group("rules, at least one")
    group.add_argument("--max-drop", type=float, metavar="POINTS", help="of accuracy that may be lost")
    group.add_argument("--max-increase", type=float, metavar="X", help="by which the loss may rise")
    text = "JSON of an earlier scan or gate: the limits then are on what is lost more than there"
    group.add_argument("--baseline", metavar="FILE", help=text)
    group = parser.add_argument_group("how")
    text = "change groups one by one: tensor, module, or patterns (default: as the baseline, or all weights together)"
    group.add_argument("--groups", nargs="+", metavar="G", help=text)
    group.add_argument(
        "--steps", type=_positive, default=1, metavar="K", help="of ascent; more find worse (default: 1)"
    )
    group.add_argument(
        "--verify", type=_count, default=5, metavar="M", help="groups that are measured, or all (default: 5)"
    )
    _reports(parser, junit=True)


def _fault(parser: argparse.ArgumentParser, *, seed: int | None) -> None:
    group = parser.add_argument_group("faults")
    group.add_argument(
        "--fault", choices=("single", "multi", "burst", "stuck"), default="single", help="default: single"
    )
    text = "positions from 0, the lowest, or sign, exponent, mantissa (default: all)"
    group.add_argument("--bits", nargs="+", type=_bit, metavar="B", help=text)
    group.add_argument("--width", type=int, metavar="W", help="bits of a fault that is multi (default: 2) or burst (4)")
    group.add_argument("--value", type=int, choices=(0, 1), help="what bits are stuck at (default: either)")
    group.add_argument("--buffers", action="store_true", help="also in buffers of a model")
    text = "what is packed into tensors, as in '*.qweight=int4'"
    group.add_argument("--format", nargs="+", type=_assignment, default=[], metavar="PATTERN=F", help=text)
    group.add_argument("--seed", type=int, default=seed, required=seed is None, help="of the faults")


def _bitflip(commands: Any) -> None:
    parser = _command(
        commands,
        "bitflip",
        "CHECKPOINT (--rate R | --count N) --seed SEED",
        "flip bits in a checkpoint, or in a model to measure what that costs",
        "model.safetensors --rate 1e-6 --seed 0 --output flipped.safetensors\n"
        "./llama --count 100 --bits exponent --seed 0 --output ./llama-flipped --plan plan.safetensors\n"
        "--model mine:model --data mine:batches --count 1 --bits 30 --seed 0",
    )
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="safetensors: a file, an index or a folder")
    group = parser.add_argument_group("how many, one of")
    either = group.add_mutually_exclusive_group(required=True)
    either.add_argument("--rate", type=float, help="the probability of a fault for each bit")
    either.add_argument("--count", type=int, help="how many faults")
    _fault(parser, seed=None)
    group = parser.add_argument_group("files")
    group.add_argument("--output", "-o", metavar="PATH", help="the checkpoint with the faults: a file, or a folder")
    group.add_argument("--plan", metavar="FILE", help="the faults, for apply and paramcorrupt.Faults.load")
    group.add_argument("--tensors", nargs="+", metavar="PATTERN", help="only in tensors of these names")
    group = parser.add_argument_group("instead of a checkpoint")
    group.add_argument("--model", metavar="MODEL", help=_MODEL)
    _weights(group)
    group.add_argument("--data", metavar="DATA", help=_DATA)
    group.add_argument("--split", help="of a data set with several (default: validation, or else test)")
    group.add_argument(
        "--batch-size", type=_positive, metavar="N", help="examples of a batch of a data set (default: 32)"
    )
    group.add_argument("--limit", type=_positive, metavar="N", help="only the first N examples")
    group.add_argument("--loss", default="auto", metavar="LOSS", help="as of scan")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    _reports(parser)


def _vulnerability(commands: Any) -> None:
    parser = _command(
        commands,
        "vulnerability",
        "MODEL --data DATA",
        "estimate for each bit how likely a fault there makes an output wrong",
        "mine:model --data mine:batches --bits exponent sign --json vulnerability.json\n"
        "mine:model --data mine:batches --groups module --half-width 0.02 --html vulnerability.html",
    )
    _inputs(parser, loss=False)
    _fault(parser, seed=0)
    group = parser.add_argument_group("sampling")
    group.add_argument("--groups", nargs="+", default=["tensor"], metavar="G", help=_GROUPS)
    group.add_argument("--confidence", type=float, default=0.95, help="of each interval (default: 0.95)")
    text = "of the interval at which sampling stops (default: 0.01)"
    group.add_argument("--half-width", type=float, default=0.01, metavar="W", help=text)
    group.add_argument("--max-faults", type=_positive, default=10_000, metavar="N", help="of a bit (default: 10000)")
    methods = ("sequence", "wilson", "clopper-pearson")
    group.add_argument("--method", choices=methods, default="sequence", help="of the intervals (default: sequence)")
    _reports(parser)


def _protect(commands: Any) -> None:
    parser = _command(
        commands,
        "protect",
        "FILE (--budget SHARE | --target RISK)",
        "choose the bits whose protection prevents most wrong outputs",
        "vulnerability.json --budget 0.03\nvulnerability.json --target 0.001 --granularity position",
    )
    parser.add_argument("vulnerability", metavar="FILE", help="the JSON of paramcorrupt vulnerability")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--budget", type=float, metavar="SHARE", help="of all bits that can be protected")
    either.add_argument("--target", type=float, metavar="RISK", help="share of wrong outputs that may remain")
    text = "what is protected at once: a bit of a group, of all groups, or a group (default: bit)"
    parser.add_argument("--granularity", choices=("bit", "position", "group"), default="bit", help=text)
    _reports(parser)


def _apply(commands: Any) -> None:
    parser = _command(
        commands,
        "apply",
        "CHECKPOINT CHANGE --output PATH",
        "write a checkpoint with a saved corruption or saved faults, every other byte as it was",
        "model.safetensors worst.safetensors --output changed.safetensors\n"
        "./llama plan.safetensors --output ./llama-flipped",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a file, an index of shards, or a folder")
    parser.add_argument("change", metavar="CHANGE", help="what Corruption.save, Faults.save or bitflip --plan wrote")
    parser.add_argument("--output", "-o", required=True, metavar="PATH", help="a file, or a folder for shards")
    _trust(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr, where it is shown in a terminal")
    parser.add_argument("--debug", action="store_true", help="the traceback of an error")


def _diff(commands: Any) -> None:
    parser = _command(
        commands,
        "diff",
        "A B",
        "compare two checkpoints tensor by tensor, or two JSON reports row by row",
        "model.safetensors quantised.safetensors\n./before ./after --csv difference.csv\nlast.json this.json",
    )
    parser.add_argument("a", metavar="A", help="safetensors (a file, an index, a folder), .pt, .pth, .th, or JSON")
    parser.add_argument("b", metavar="B", help="what is compared with it")
    _trust(parser)
    _reports(parser)


# --- values of options ----------------------------------------------------------------------------------------------


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _count(text: str) -> int | str:
    return text if text == "all" else _natural(text)


def _bit(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"must be PATTERN=FORMAT, got {text!r}")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
