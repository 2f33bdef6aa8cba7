"""The command `iounet`: train, eval, refine, viz, bench. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_DATA = "coco:PATH, voc:PATH, yolo:PATH or hf:NAME (see iounet.data.open_dataset)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: default: those of the process.

    Returns:
        The exit code: 0; 2 after an error, which is one line on stderr; 130 after Ctrl-C. Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]  # it looks at the message only
        try:
            _prepare(options)
            options.run(options)
            sys.stdout.flush()
        except KeyboardInterrupt:
            return 130
        except (ArithmeticError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
            sys.stderr.write(f"iounet: error: {reason}\n")
            return 2
    return 0


def _show_warning(message: Warning | str, *_: Any) -> None:
    sys.stderr.write(f"iounet: warning: {message}\n")


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line, as all errors are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("iounet", description="IoU-Net: detectors that know how well their boxes fit.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"iounet {__version__}")
    commands = parser.add_subparsers(required=True, metavar="train | eval | refine | viz | bench")
    _add_train(commands)
    _add_eval(commands)
    _add_refine(commands)
    _add_viz(commands)
    _add_bench(commands)
    return parser


def _command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    """A command and what all commands have."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about, allow_abbrev=False, formatter_class=_Formatter
    )

    def run(options: Any) -> None:
        from . import _commands

        getattr(_commands, f"run_{name}")(options)

    parser.set_defaults(run=run, files=("json",))
    common = parser.add_argument_group("common")
    common.add_argument("--seed", type=int, default=0, help="of everything random")
    common.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto is cuda where there is one")
    common.add_argument("--threads", type=_positive, help="of the CPU (default: torch's)")
    common.add_argument("--json", metavar="FILE", help="write the report as JSON")
    common.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults are shown where there is one and the text does not tell it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or isinstance(action.default, bool) or "default" in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


def _prepare(options: Any) -> None:
    """Refuse at once what would fail only at the end."""
    import torch

    for name in ("json", "out"):
        path = getattr(options, name, None)
        if path is not None and name in options.files and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"--{name} must be a file in a folder that exists, got {path}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.device = torch.device(options.device)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device must be there, got {options.device} without a CUDA device")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _fraction(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and 0 <= number <= 1):
        raise argparse.ArgumentTypeError(f"must be in [0, 1], got {text}")
    return number


def _share(text: str) -> float:
    if not (number := _fraction(text)):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return number


def _add_data(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--data", required=required, metavar="SPEC", help=_DATA)
    parser.add_argument("--split", help="of the data, where there are several (train, val, test, ...)")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="model.pth of `iounet train`; or, with --model, a state dict "
        "(.pth, .safetensors) or torchvision's name of weights (DEFAULT, COCO_V1)"
    )  # fmt: skip
    parser.add_argument("--model", metavar="NAME", help="small, or a torchvision detector")


def _add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=_positive, default=1, help="images of one forward pass")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")


def _add_inference(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("IoU-Net")
    group.add_argument("--nms", choices=["iou", "nms", "soft"], default="iou", help="guided by IoU, plain, or soft")
    group.add_argument("--key", choices=["iou", "product"], default="iou", help="of the NMS guided by IoU")
    group.add_argument("--iou-threshold", type=_fraction, metavar="T", help="of the NMS (default: the model's)")
    group.add_argument("--top", type=int, default=100, metavar="N", help="the best boxes of an image are refined")
    group.add_argument("--step", type=float, default=0.05, help="of the refinement")
    group.add_argument("--steps", type=int, default=5, help="of the refinement, at most")
    group.add_argument("--scale", choices=["size", "log"], default="log", help="of the steps; size is the paper's")
    group.add_argument(
        "--on-degrade", choices=["keep", "revert", "backtrack"], default="backtrack", help="keep is the paper's"
    )
    group.add_argument("--starts", type=int, default=1, metavar="N", help="boxes that the refinement starts from")


def _add_train(commands: Any) -> None:
    parser = _command(commands, "train", "Train a detector, an IoU-Net, or both; under torchrun on many processes.")
    _add_data(parser, required=True)
    parser.add_argument("--out", required=True, metavar="DIR", help="gets model.pth, last.pth and history.json")
    parser.add_argument("--resume", action="store_true", help="go on from last.pth in DIR if it is there")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="small", metavar="NAME", help="small, or a torchvision detector")
    model.add_argument(
        "--weights", default="none", metavar="W", help="to start from: none; backbone, torchvision's of ImageNet; "
        "torchvision's name of a detector's (DEFAULT, COCO_V1); or a file (.pth, .safetensors)"
    )  # fmt: skip
    model.add_argument(
        "--iou-net", choices=["joint", "standalone", "none"], default="joint", help="inside of an R-CNN and trained "
        "with it; beside any detector, which stays as it is; or none"
    )  # fmt: skip
    model.add_argument("--iou-loss", choices=["smooth_l1", "bce"], default="smooth_l1", help="of the IoU-Net")
    model.add_argument("--loss-weight", type=float, default=5.0, metavar="W", help="of the IoU-Net's loss")
    model.add_argument("--samples", type=_positive, default=1000, metavar="N", help="jittered boxes of an image")
    model.add_argument("--min-size", type=_positive, metavar="PX", help="of the image that the detector sees")
    model.add_argument("--max-size", type=_positive, metavar="PX", help="of the image that the detector sees")
    rgb = ("R", "G", "B")
    model.add_argument("--image-mean", type=_fraction, nargs=3, metavar=rgb, help="of images (default: ImageNet's)")
    model.add_argument("--image-std", type=_fraction, nargs=3, metavar=rgb, help="of images (default: ImageNet's)")
    loop = parser.add_argument_group("training")
    loop.add_argument("--epochs", type=_positive, default=12, help="of the whole run")
    loop.add_argument("--batch-size", type=_positive, default=4, help="images of one step, over all processes")
    loop.add_argument("--lr", type=float, default=0.005, help="learning rate")
    loop.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd")
    loop.add_argument("--momentum", type=float, default=0.9)
    loop.add_argument("--weight-decay", type=float, default=1e-4)
    loop.add_argument("--warmup", type=int, default=100, metavar="STEPS", help="the learning rate rises from 0")
    loop.add_argument("--schedule", choices=["step", "cosine", "constant"], default="step", help="of the learning rate")
    loop.add_argument(
        "--milestones", type=_positive, nargs="+", metavar="EPOCH", help="of the schedule step (default: 2/3 and 11/12 "
        "of the epochs)"
    )  # fmt: skip
    loop.add_argument("--clip", type=float, default=10.0, metavar="NORM", help="of the gradient; 0: none")
    loop.add_argument("--flip", type=_fraction, default=0.5, metavar="P", help="probability of mirroring left-right")
    loop.add_argument("--vertical-flip", type=_fraction, default=0.0, metavar="P", help="... and top-bottom")
    loop.add_argument("--zoom", type=float, nargs=2, default=[1.0, 1.0], metavar=("LOW", "HIGH"), help="of images")
    loop.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of autocast")
    loop.add_argument("--save-every", type=_positive, metavar="STEPS", help="last.pth, besides every epoch")
    loop.add_argument("--workers", type=int, default=0, help="processes that load images")


def _add_eval(commands: Any) -> None:
    parser = _command(commands, "eval", "Compare NMS, NMS guided by IoU, and refinements, by COCO's protocol.")
    _add_data(parser, required=True)
    _add_weights(parser)
    _add_loading(parser)
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="of nms, iou-nms, refine (the paper's rule), refine-log (log, step "
        ".05, backtrack) and product (refine-log, score times IoU); default: all that the model has"
    )  # fmt: skip
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N images")
    parser.add_argument(
        "--backend", choices=["pycocotools", "faster-coco-eval", "hotcoco"], default="pycocotools", help="of AP"
    )
    parser.add_argument("--results", metavar="DIR", help="write ROW.json, COCO results, for each row")


def _add_refine(commands: Any) -> None:
    parser = _command(commands, "refine", "Write refined detections of images, or of a COCO results file.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files and folders")
    parser.add_argument("--out", required=True, metavar="FILE", help="refined detections: COCO results with `iou`")
    parser.set_defaults(files=("json", "out"))
    _add_weights(parser)
    parser.add_argument("--detections", metavar="FILE", help="COCO results, best before NMS, for images of --data")
    _add_data(parser, required=False)
    _add_loading(parser)
    parser.add_argument("--score", choices=["class", "product"], default="class", help="product: with predicted IoU")
    parser.add_argument("--min-score", type=_fraction, default=0.0, help="detections below are not written")
    _add_inference(parser)


def _add_viz(commands: Any) -> None:
    parser = _command(commands, "viz", "Draw boxes before and after refinement, and plots of what it changes.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files and folders; or --data")
    parser.add_argument("--out", required=True, metavar="DIR", help="for the pictures")
    _add_weights(parser)
    _add_data(parser, required=False)
    parser.add_argument("--count", type=_positive, default=8, help="images of --data, chosen by the seed")
    parser.add_argument("--min-score", type=_fraction, default=0.5, help="detections below are not drawn")
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="overlays only")
    parser.set_defaults(score="class")  # keeps the order of detections from step to step
    _add_inference(parser)


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", "Time pooling, head, NMS and refinement here, beside torchvision's.")
    parser.add_argument("--repeat", type=_positive, default=7, help="interleaved pairs; their median ratio counts")
    parser.add_argument("--size", type=_share, default=1.0, help="share of the workload's boxes that is taken")


if __name__ == "__main__":
    sys.exit(main())
