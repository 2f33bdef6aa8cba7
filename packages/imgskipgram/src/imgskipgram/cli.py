"""The command `imgskipgram`: train, explain, evaluate, export, bank. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from . import __version__
from ._cli_parts import check_output, command, tell
from ._cli_train import add_train

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_ERRORS = (ArithmeticError, ImportError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: default: those of the process.

    Returns:
        The exit code: 0, 1 after an error, 130 after Ctrl-C, 141 after a broken pipe. Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: tell("warning", message)
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 141
    except KeyboardInterrupt:
        return 130
    except _ERRORS as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        tell("error", reason if str(reason) else type(error).__name__)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "imgskipgram",
        description="Word vectors that pictures explain.",
        epilog="First `bank` (if there are pictures), then `train`, then `explain`, `evaluate` or `export`. "
        "Each says more with --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"imgskipgram {__version__}")
    commands = parser.add_subparsers(required=True, metavar="bank | train | explain | evaluate | export")
    _add_bank(commands)
    add_train(commands)
    _add_explain(commands)
    _add_evaluate(commands)
    _add_export(commands)
    return parser


# bank


def _add_bank(commands: Any) -> None:
    about = "Turn a folder of pictures into a bank, which training and explanations need."
    parser = command(commands, "bank", _bank, about, "imgskipgram bank photos --backbone mobilenet_v2 -o bank.npz")
    parser.add_argument(
        "folder", metavar="FOLDER", help="its folders' names are the words that the pictures in them show"
    )
    parser.add_argument(
        "--backbone",
        required=True,
        metavar="NAME",
        help="network that looks at the pictures: a name of torchvision's, as resnet50, or timm:NAME; weights are "
        "downloaded when it is first used",
    )
    parser.add_argument("-o", "--output", required=True, metavar="BANK.npz", help="the bank")
    parser.add_argument(
        "--on-error", choices=["raise", "skip"], default="raise", help="at a broken picture (default: raise)"
    )


def _bank(options: Any) -> None:
    from .bank import ImageBank

    check_output(options.output)
    bank = ImageBank.from_folder(options.folder, options.backbone, on_error=options.on_error)
    bank.save(options.output)
    report = ", ".join(f"{count:,} {name}" for name, count in bank.report_.items())
    sys.stdout.write(f"{options.output}: {report}\n")


# explain


def _add_explain(commands: Any) -> None:
    about = "Show the pictures of words, and the words with pictures that lie between."
    parser = command(commands, "explain", _explain, about, "imgskipgram explain model.npz freedom --html freedom.html")
    parser.add_argument("model", metavar="MODEL", help="a model that was trained with pictures")
    parser.add_argument("words", nargs="+", metavar="WORD", help="words of its vocabulary")
    parser.add_argument(
        "--html",
        metavar="OUT",
        help="write a page that any browser shows; of several words OUT is a folder, made if missing, with a page of "
        "each (default: ids and scores as text)",
    )
    parser.add_argument("--topn", type=int, default=9, metavar="N", help="pictures of a word (default: 9)")
    parser.add_argument(
        "--no-csls", dest="csls", action="store_false", help="keep pictures that are near to everything"
    )
    parser.add_argument(
        "--diversity", type=float, default=0.0, metavar="X", help="how unlike pictures shall be, 0 to 1 (default: 0)"
    )


def _explain(options: Any) -> None:
    from pathlib import Path
    from urllib.parse import quote

    from .model import ImageSkipGram

    several = len(options.words) > 1
    if options.html is not None:
        check_output(options.html, folder=several)
    model = ImageSkipGram.load(options.model)
    found = [
        model.explain(word, options.topn, csls=options.csls, diversity=options.diversity) for word in options.words
    ]
    if options.html is None:
        sys.stdout.write("\n".join(map(_listed, found)))
        return
    out = Path(options.html)
    if several:
        out.mkdir(exist_ok=True)
    for explanation in found:
        page = out / f"{quote(explanation.title, safe=' ')}.html" if several else out
        explanation.to_html(page)
        sys.stdout.write(f"{page}\n")


def _listed(explanation: Any) -> str:
    lines = [explanation.title]
    lines += [f"{rank:5}  {score:7.4f}  {name}" for rank, (_, name, score) in enumerate(explanation.images, 1)]
    for word, cosine, image in explanation.path:
        lines.append(f"  via  {cosine:7.4f}  {word}  {explanation.ids[image]}")
    return "\n".join(lines) + "\n"


# evaluate


def _add_evaluate(commands: Any) -> None:
    about = "Measure a model: likeness of words, analogies, and pictures of words that it was never shown."
    epilog = "imgskipgram evaluate model.npz --similarity SimLex999.txt --analogy questions-words.txt --grounding"
    parser = command(commands, "evaluate", _evaluate, about, epilog)
    parser.add_argument("model", metavar="MODEL", help="a model")
    parser.add_argument(
        "--similarity", action="append", default=[], metavar="FILE", help="lines of two words and a score; repeatable"
    )
    parser.add_argument(
        "--analogy", action="append", default=[], metavar="FILE", help="lines of four words, a : b = c : d; repeatable"
    )
    parser.add_argument(
        "--grounding",
        action="store_true",
        help="of a model that was trained with --held-out: does it find the "
        "pictures of the words whose labels it was not shown?",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(parser=parser)


def _evaluate(options: Any) -> None:
    import json

    from . import evaluate
    from .model import ImageSkipGram

    if not (options.similarity or options.analogy or options.grounding):
        options.parser.error("at least one of --similarity, --analogy and --grounding is required")
    model = ImageSkipGram.load(options.model)
    found: dict[str, Any] = {}
    for path in options.similarity:
        found.setdefault("similarity", {})[path] = evaluate.similarity(model.wv, path)
    for path in options.analogy:
        found.setdefault("analogy", {})[path] = evaluate.analogy(model.wv, path)
    if options.grounding:
        bank = model.bank
        hidden = set() if bank is None else {word for labels in bank.hidden for word in labels}
        if bank is not None and not hidden:
            raise ValueError(f"{options.model} must be trained with --held-out for --grounding, but saw all labels")
        found["grounding"] = evaluate.grounding(model, hidden)
    if options.json:
        sys.stdout.write(json.dumps(_plain(found), ensure_ascii=False, indent=2) + "\n")
        return
    for kind, results in found.items():
        rows = results.items() if isinstance(results, dict) else [(options.model, results)]
        sys.stdout.writelines(f"{kind} {name}\n{result}\n" for name, result in rows)


def _plain(value: Any) -> Any:
    """What JSON can hold: records become objects, and NaN becomes null."""
    from dataclasses import fields, is_dataclass
    from math import isfinite

    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not isfinite(value) else value


# export


def _add_export(commands: Any) -> None:
    about = "Write the vectors of a model for other programs."
    parser = command(commands, "export", _export, about, "imgskipgram export model.npz vectors.txt")
    parser.add_argument("model", metavar="MODEL", help="a model")
    parser.add_argument("output", metavar="OUT", help="the file")
    parser.add_argument(
        "--format",
        choices=["word2vec", "word2vec-bin", "npz"],
        default="word2vec",
        help="text or binary of word2vec, or arrays of NumPy: words, vectors, and image_ids, image_vectors, mu where "
        "there are pictures (default: word2vec)",
    )


def _export(options: Any) -> None:
    from .model import ImageSkipGram

    check_output(options.output)
    model = ImageSkipGram.load(options.model)
    if options.format != "npz":
        model.save_word2vec_format(options.output, binary=options.format == "word2vec-bin")
        return
    import numpy as np

    from ._replacing import replacing

    arrays = {"words": np.array(model.wv.index_to_key), "vectors": model.wv.vectors}
    if model.bank is not None:
        parts = model._explanation_parts()
        arrays |= {"image_ids": np.array(parts["ids"]), "image_vectors": parts["z"], "mu": parts["mu"]}
    with replacing(options.output) as file:
        np.savez(file, **arrays)


if __name__ == "__main__":
    sys.exit(main())
