"""The command `imgskipgram`: train, explain, evaluate, export, bank. What a command needs is imported when it runs."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
            warnings.showwarning = lambda message, *_, **__: _tell("warning", message)
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 141
    except KeyboardInterrupt:
        return 130
    except _ERRORS as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        _tell("error", reason if str(reason) else type(error).__name__)
        return 1
    return 0


def _tell(kind: str, message: object) -> None:
    sys.stderr.write(f"imgskipgram: {kind}: {' '.join(str(message).split())}\n")


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
    _add_train(commands)
    _add_explain(commands)
    _add_evaluate(commands)
    _add_export(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[[Any], None], about: str, epilog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about, epilog=f"Example: {epilog}", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


# bank


def _add_bank(commands: Any) -> None:
    about = "Turn a folder of pictures into a bank, which training and explanations need."
    parser = _command(commands, "bank", _bank, about, "imgskipgram bank photos --backbone mobilenet_v2 -o bank.npz")
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

    _check_output(options.output)
    bank = ImageBank.from_folder(options.folder, options.backbone, on_error=options.on_error)
    bank.save(options.output)
    report = ", ".join(f"{count:,} {name}" for name, count in bank.report_.items())
    sys.stdout.write(f"{options.output}: {report}\n")


# train


def _add_train(commands: Any) -> None:
    about = "Train word vectors on a corpus, with pictures if there is a bank of them."
    epilog = "imgskipgram train corpus.txt.gz --images bank.npz --vector-size 200 -o model.npz"
    parser = _command(commands, "train", _train, about, epilog)
    parser.add_argument(
        "corpus",
        metavar="CORPUS",
        help="a text with one sentence a line and white space between words (plain, .gz, .bz2 or .xz), - for standard "
        "input, or hf:NAME for a Hugging Face data set, which is streamed",
    )
    parser.add_argument("-o", "--output", required=True, metavar="MODEL", help="the model, .npz or .safetensors")
    parser.add_argument("--images", metavar="BANK.npz", help="pictures, as `bank` or ImageBank.save made them")
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a bar on standard error (default: if that is a terminal)",
    )
    _add_model(parser)
    _add_sources(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    words = parser.add_argument_group("words")
    _number(words, "vector-size", 100, "numbers in a vector")
    _number(words, "window", 5, "words on each side that are context, at most")
    _number(words, "min-count", 5, "leave out words that are rarer")
    _number(words, "negative", 5, "words drawn against each centre")
    _number(words, "sample", 1e-3, "frequency from which words are thinned out; 0 keeps all")
    _number(words, "ns-exponent", 0.75, "negatives are drawn by count to this power")
    _choice(words, "negatives", ("center", "batch", "pair"), "what shares negatives")
    _number(words, "max-vocab-size", None, "words counted at a time; bounds memory", int)
    _number(words, "max-final-vocab", None, "words kept; raises --min-count as needed", int)
    _switch(words, "shrink-windows", True, "each centre draws its window's width")
    _switch(words, "sorted-vocab", True, "words by falling count")
    images = parser.add_argument_group("pictures")
    _choice(images, "objective", ("nce", "margin", "infonce", "none"), "the term that draws words to their pictures")
    _number(images, "image-weight", 1.0, "its weight; 0 trains text alone")
    _number(images, "image-negative", 5, "pictures of other words drawn against each")
    _choice(images, "projection", ("shared", "fixed", "free"), "where pictures lie")
    images.add_argument(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="hide the labels of this share of the words from training, for `evaluate --grounding` (default: none; the "
        "corpus is then read twice)",
    )
    images.add_argument("--held-out-seed", type=int, default=0, metavar="N", help="which words they are (default: 0)")
    run = parser.add_argument_group("training")
    _number(run, "epochs", 5, "passes over the corpus")
    _number(run, "alpha", 0.025, "learning rate at the beginning")
    _number(run, "min-alpha", 1e-4, "and at the end")
    _number(run, "seed", 1, "of all that is drawn")
    _number(run, "workers", None, "threads (default: all cores)", int)
    _switch(run, "deterministic", False, "the same bits for any number of threads")
    _choice(run, "dtype", ("float32", "float64", "bfloat16"), "of vectors")
    _choice(run, "device", ("cpu", "cuda"), "what trains")


def _add_sources(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("corpus")
    source.add_argument("--text-column", default="text", metavar="NAME", help="of hf:NAME (default: text)")
    source.add_argument("--config", metavar="NAME", help="of hf:NAME, where it has several")
    source.add_argument("--split", default="train", metavar="NAME", help="of hf:NAME (default: train)")
    kept = source.add_mutually_exclusive_group()
    kept.add_argument(
        "--cache-dir", metavar="FOLDER", help="for numbers of words above 1 GiB (default: the system's for such files)"
    )
    kept.add_argument("--stream", action="store_true", help="keep nothing: read the corpus again for each epoch")


def _number(group: Any, name: str, default: float | None, about: str, kind: type = float) -> None:
    kind = kind if default is None else type(default)
    shown = about if default is None else f"{about} (default: {default:g})"
    group.add_argument(f"--{name}", type=kind, default=default, metavar="N" if kind is int else "X", help=shown)


def _choice(group: Any, name: str, choices: tuple[str, ...], about: str) -> None:
    group.add_argument(f"--{name}", choices=choices, default=choices[0], help=f"{about} (default: {choices[0]})")


def _switch(group: Any, name: str, default: bool, about: str) -> None:
    shown = f"{about} (default: {'yes' if default else 'no'})"
    group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default, help=shown)


def _train(options: Any) -> None:
    from ._options import Options
    from .bank import ImageBank
    from .model import ImageSkipGram

    _check_output(options.output)
    given = vars(options)
    model = ImageSkipGram(**{name: given[name] for name in Options.__dataclass_fields__ if name in given})
    if options.held_out is not None and options.images is None:
        raise ValueError("--held-out needs --images, of which labels are hidden")
    bank = None if options.images is None else ImageBank.load(options.images)
    corpus = _corpus(options)
    shown = sys.stderr.isatty() if options.progress is None else options.progress
    if options.held_out is None:
        cache = False if options.stream else options.cache_dir
        model.fit(corpus, bank, text_column=options.text_column, cache_dir=cache, progress=shown)
    else:
        from .evaluate import split

        model.build_vocab(corpus, text_column=options.text_column)
        bank, _ = split(bank, model.wv, options.held_out, options.held_out_seed)
        model.train(corpus, bank, text_column=options.text_column, progress=shown)
    model.save(options.output)
    losses = model.losses_[-1]
    image = f", image loss {losses['image']:.4f}" if losses["image_pairs"] else ""
    sys.stdout.write(f"{options.output}: {model}, text loss {losses['text']:.4f}{image}\n")


def _corpus(options: Any) -> Any:
    name: str = options.corpus
    if name == "-":
        if options.stream or options.held_out is not None:
            raise ValueError("CORPUS must be readable more than once with --stream and --held-out, got - (a pipe)")
        return "/dev/stdin"
    if not name.startswith("hf:"):
        return name
    from ._extras import need

    load = need("datasets", "data", "a Hugging Face data set").load_dataset
    return load(name.removeprefix("hf:"), options.config, split=options.split, streaming=True)


# explain


def _add_explain(commands: Any) -> None:
    about = "Show the pictures of words, and the words with pictures that lie between."
    parser = _command(commands, "explain", _explain, about, "imgskipgram explain model.npz freedom --html freedom.html")
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
        _check_output(options.html, folder=several)
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
    parser = _command(commands, "evaluate", _evaluate, about, epilog)
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
        hidden = () if model.bank is None else {word for labels in model.bank.hidden for word in labels}
        if model.bank is not None and not hidden:
            raise ValueError(
                f"{options.model} must be trained with --held-out for --grounding, it was shown all labels"
            )
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
    parser = _command(
        commands, "export", _export, about, "imgskipgram export model.npz vectors.bin --format word2vec-bin"
    )
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

    _check_output(options.output)
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


def _check_output(path: str, folder: bool = False) -> None:
    """Raises OSError, before any work, if nothing could be written at the path."""
    parent = os.path.dirname(path) or "."
    if not os.path.isdir(parent):
        raise FileNotFoundError(f"the folder of the output must exist, got {path!r}")
    if os.path.isdir(path) != folder and os.path.exists(path):
        raise OSError(f"the output must {'be a folder' if folder else 'be a file, not a folder'}, got {path!r}")
    if not os.access(path if folder and os.path.isdir(path) else parent, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder of the output must be one that can be written to, got {path!r}")


if __name__ == "__main__":
    sys.exit(main())
