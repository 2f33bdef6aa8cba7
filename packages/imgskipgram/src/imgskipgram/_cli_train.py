"""The command `imgskipgram train`: every option of a model but those that only code can give."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ._cli_parts import check_output, command

__all__ = ["add_train"]


def add_train(commands: Any) -> None:
    about = "Train word vectors on a corpus, with pictures if there is a bank of them."
    epilog = "imgskipgram train corpus.txt.gz --images bank.npz --vector-size 200 -o model.npz"
    parser = command(commands, "train", _train, about, epilog)
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
    _choice(
        words,
        "negatives",
        ("center", "batch", "pair"),
        "each centre has negatives of its own, eight share them, or each pair has its own, as in word2vec",
    )
    _number(words, "max-vocab-size", None, "words counted at a time; bounds memory", int)
    _number(words, "max-final-vocab", None, "words kept; raises --min-count as needed", int)
    _switch(words, "shrink-windows", True, "each centre draws its window's width")
    _switch(words, "sorted-vocab", True, "words by falling count")
    images = parser.add_argument_group("pictures")
    _choice(images, "objective", ("nce", "margin", "infonce", "none"), "the term that draws words to their pictures")
    _number(images, "image-weight", 1.0, "its weight; 0 trains text alone")
    _number(images, "image-negative", 5, "pictures of other words drawn against each")
    _choice(
        images,
        "projection",
        ("shared", "fixed", "free"),
        "pictures lie where the words of similar ones are, by their principal components, or anywhere (as a negative "
        "control)",
    )
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

    check_output(options.output)
    given = vars(options)
    model = ImageSkipGram(**{name: given[name] for name in Options.__dataclass_fields__ if name in given})
    if options.held_out is not None and options.images is None:
        raise ValueError("--held-out needs --images, of which labels are hidden")
    bank = None if options.images is None else ImageBank.load(options.images)
    corpus = _corpus(options)
    shown = sys.stderr.isatty() if options.progress is None else options.progress
    if bank is not None and options.held_out is not None:
        from .evaluate import split

        model.build_vocab(corpus, text_column=options.text_column)
        bank, _ = split(bank, model.wv, options.held_out, options.held_out_seed)
        model.train(corpus, bank, text_column=options.text_column, progress=shown)
    else:
        cache: Any = False if options.stream else options.cache_dir
        model.fit(corpus, bank, text_column=options.text_column, cache_dir=cache, progress=shown)
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
