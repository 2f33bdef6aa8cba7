"""The command `cws`: cut, pos, train, evaluate, model. What a subcommand needs is imported when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from ._stream import Block
    from .segmenter import Segmenter

__all__ = ["main"]

_STYLES = ("text", "offsets", "tsv", "jsonl")
_UNITS = ("char", "byte", "utf16")
_RATES = ("rate", "upper", "lower", "l2", "domain_dropout", "feature_dropout")  # of training
_COUNTS = ("updates", "max_bytes", "seed", "threads", "shards")
_LONG = 1 << 24  # bytes of input from which on its progress is shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: default: those of the process.

    Returns:
        The exit code: 0, 1 after an error, 130 after Ctrl-C, 141 after a broken pipe. Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 141
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.stderr.write(f"cws: error: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cws", description="Chinese word segmentation.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"cws {__version__}")
    commands = parser.add_subparsers(required=True, metavar="cut | pos | train | evaluate | model")
    _add_cut(commands)
    _add_pos(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_model(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[[Any], None], about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


# The segmenter and the streams of cut and pos


def _add_segmenter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="default", help="name or path of the model (default: the shipped one)")
    parser.add_argument(
        "--domain", default="auto", help="auto (default), a domain, or a mixture as in wiki=.7,spoken=.3"
    )
    parser.add_argument("--words", action="append", default=[], metavar="FILE", help="user words, one a line")
    parser.add_argument(
        "--cost", type=_cost, help="of the user words, in nats, or force, or forbid (default: -4, a reward)"
    )


def _add_streams(parser: argparse.ArgumentParser, styles: Sequence[str]) -> None:
    parser.add_argument("files", nargs="*", default=["-"], metavar="FILE", help="texts, one a line (default: stdin)")
    parser.add_argument("--output", metavar="FILE", help="written aside, then renamed (default: stdout)")
    parser.add_argument("--errors", choices=["strict", "replace"], default="strict", help="of UTF-8 (default: strict)")
    parser.add_argument("--format", choices=styles, default="text", help="of the output (default: text)")
    parser.add_argument("--unit", choices=_UNITS, default="char", help="of offsets (default: char)")
    parser.add_argument("--threads", type=_positive, help="default: one for each core")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _cost(text: str) -> float | str:
    return text if text in ("force", "forbid") else float(text)


def _segmenter(options: Any) -> Segmenter:
    from .segmenter import Segmenter, read_words

    segmenter = Segmenter.load(options.model, _domain(options.domain))
    for path in options.words:
        segmenter.add_words(path if options.cost is None else dict.fromkeys(read_words(path), options.cost))
    return segmenter


def _domain(text: str) -> Any:
    if "=" not in text:
        return text
    try:
        return {name: float(weight) for name, weight in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ValueError(f"--domain must be a name or name=weight,..., got {text!r}") from None


def _stream(options: Any, work: Callable[[Block], bytes]) -> None:
    """Write what `work` makes of the lines of the files."""
    from ._stream import blocks, opened_output, process, total_size

    with (
        opened_output(options.output) as output,
        _progress(total_size(options.files), output.isatty()) as advance,
    ):

        def read() -> Iterator[Block]:
            for block in blocks(options.files):
                yield block
                advance(len(block.data))

        def write(data: bytes) -> None:
            output.write(data)
            output.flush()

        process(read(), work, write, options.threads or _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _progress(total: int | None, shown_already: bool) -> AbstractContextManager[Callable[[int], object]]:
    """A bar on stderr if that is a terminal, the output is none, and the input is long."""
    if total is None or total < _LONG or shown_already or not sys.stderr.isatty():
        return nullcontext(lambda _: None)

    @contextmanager
    def bar() -> Iterator[Callable[[int], object]]:
        from tqdm import tqdm

        with tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr) as progress:
            yield progress.update

    return bar()


def _decoded(block: Block, errors: str) -> str:
    """The text of a block; an invalid byte is named by its place in the file."""
    try:
        return block.data.decode(errors=errors)
    except UnicodeDecodeError as error:
        byte = block.data[error.start]
        raise ValueError(
            f"{block.name} must be UTF-8, got the byte 0x{byte:02x} at byte {block.start + error.start}; "
            "--errors replace reads on"
        ) from None


# cut


def _add_cut(commands: Any) -> None:
    parser = _command(commands, "cut", _cut, "Cut texts into words.")
    _add_streams(parser, _STYLES)
    _add_segmenter(parser)
    parser.add_argument("--granularity", choices=["coarse", "fine", "search"], default="coarse", help="default: coarse")


def _cut(options: Any) -> None:
    from ._core import format_rows

    segmenter = _segmenter(options)
    segmenter.granularity = options.granularity
    style, unit = _STYLES.index(options.format), _UNITS.index(options.unit)

    def work(block: Block) -> bytes:
        text = block.data
        try:
            offsets = segmenter.offsets_utf8(text, threads=1)
        except ValueError:
            text = _decoded(block, options.errors).encode()
            offsets = segmenter.offsets_utf8(text, threads=1)
        return format_rows(text, offsets.starts, offsets.ends, offsets.row_splits, style, unit)

    _stream(options, work)


# pos


def _add_pos(commands: Any) -> None:
    parser = _command(commands, "pos", _pos, "Cut texts into words and tag them with parts of speech.")
    _add_streams(parser, ["text", "tsv", "jsonl"])
    _add_segmenter(parser)


def _pos(options: Any) -> None:
    import json

    segmenter = _segmenter(options)
    if segmenter.tokenize("字")[0].pos is None:
        raise ValueError(f"--model must have a tagger, which {options.model!r} does not")

    def place(text: str, index: int) -> int:
        if options.unit == "char":
            return index
        before = text[:index].encode("utf-8" if options.unit == "byte" else "utf-16-le")
        return len(before) if options.unit == "byte" else len(before) // 2

    def line(text: str) -> str:
        tokens = segmenter.tokenize(text)
        if options.format == "text":
            return " ".join(f"{token.text}_{token.pos}" for token in tokens)
        offsets = [[place(text, token.start), place(text, token.end)] for token in tokens]
        if options.format == "tsv":
            rows = zip(tokens, offsets, strict=True)
            return "".join(f"{token.text}\t{start}\t{end}\t{token.pos}\n" for token, (start, end) in rows)
        row = {"tokens": [token.text for token in tokens], "offsets": offsets, "pos": [token.pos for token in tokens]}
        return json.dumps(row, ensure_ascii=False, separators=(",", ":"))

    def work(block: Block) -> bytes:
        lines = _decoded(block, options.errors).removesuffix("\n").split("\n")
        return "".join(f"{line(text)}\n" for text in lines).encode()

    _stream(options, work)


# train


def _add_train(commands: Any) -> None:
    parser = _command(commands, "train", _train, "Train a model, fine-tune one, or adapt one to unlabelled texts.")
    parser.add_argument("corpora", nargs="*", metavar="[DOMAIN=]FILE", help="texts cut into words, one a line")
    parser.add_argument("--output", required=True, metavar="FILE", help="the model, usually *.cws")
    parser.add_argument("--dev", action="append", default=[], metavar="[DOMAIN=]FILE", help="chooses the epoch")
    parser.add_argument("--dictionary", action="append", default=[], metavar="FILE", help="words, one a line")
    parser.add_argument("--pos", metavar="FILE", help="tagged words, of which a tagger for the model is trained")
    parser.add_argument("--templates", choices=["native", "pkuseg"], help="of features (default: native)")
    parser.add_argument("--epochs", type=_positive, help="default: 20; 5 with --base")
    for name in _RATES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float)
    for name in _COUNTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--no-vocabulary", dest="vocabulary", action="store_false", help="no lexicon of the corpus")
    parser.add_argument("--reference", action="store_true", help="the arithmetic of pkuseg itself")
    parser.add_argument("--device", help="cpu (default) or cuda")
    own = parser.add_argument_group("licensed corpora, from your own copies")
    own.add_argument("--recipe", action="append", default=[], choices=["msr", "pku", "weibo", "ctb"])
    own.add_argument("--data", metavar="DIR", help="where they are")
    more = parser.add_argument_group("a model that is there")
    more.add_argument("--base", metavar="MODEL", help="fine-tune or adapt this model")
    more.add_argument("--adapt", metavar="FILE", help="unlabelled texts, one a line, of a domain that is made of them")
    more.add_argument("--lexicon", metavar="FILE", help="words of that domain")
    more.add_argument("--name", default="adapted", help="of that domain (default: adapted)")


def _train(options: Any) -> None:
    from .corpus import recipe

    if bool(options.recipe) != (options.data is not None):
        raise ValueError("--recipe and --data must be given together")
    corpus = _corpora(options.corpora)
    for name in options.recipe:
        corpus = {**(corpus if isinstance(corpus, dict) else {}), **recipe(name, options.data)}
    given = {name: getattr(options, name) for name in ("epochs", "templates", "device", *_RATES, *_COUNTS)}
    chosen = {name: value for name, value in given.items() if value is not None}
    if options.adapt and (corpus or chosen.keys() - {"epochs", "seed"}):
        raise ValueError("--adapt goes with --base, --lexicon, --name, --dev, --epochs and --seed only")
    if options.adapt:
        segmenter = _adapted(options)
    elif not corpus:
        raise ValueError("a corpus must be given: [DOMAIN=]FILE, or --recipe and --data, or --adapt")
    elif options.base:
        segmenter = _fine_tuned(options.base, corpus, chosen)
    else:
        from .training import train

        chosen |= {"vocabulary": options.vocabulary, "reference": options.reference}
        with _epochs(options.epochs or 20) as progress:
            dev = _corpora(options.dev) or None
            segmenter = train(corpus, dev=dev, dictionaries=options.dictionary, progress=progress, **chosen)
    if options.pos:
        segmenter = _with_tagger(segmenter, options.pos)
    segmenter.save(options.output)


def _with_tagger(segmenter: Segmenter, corpus: str) -> Segmenter:
    from ._modelfile import replace
    from .tagger import Tagger

    return segmenter.from_bytes(replace(segmenter._model, Tagger.train(corpus).to_sections()))


@contextmanager
def _epochs(epochs: int) -> Iterator[Callable[[Any], None] | None]:
    """A bar of epochs on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=epochs, unit="epoch", file=sys.stderr) as bar:

        def progress(done: Any) -> None:
            bar.set_postfix(loss=f"{done.loss:.4f}", **({} if done.f1 is None else {"f1": f"{done.f1:.4f}"}))
            bar.update()

        yield progress


def _corpora(arguments: Sequence[str]) -> Any:
    """Paths by domain, or the only path, which has no domain."""
    if len(arguments) == 1 and (os.path.exists(arguments[0]) or "=" not in arguments[0]):
        return arguments[0]
    pairs = [argument.partition("=") for argument in arguments]
    unnamed = [name for name, _, path in pairs if not path]
    if unnamed:
        raise ValueError(f"each of several corpora must be DOMAIN=FILE, got {unnamed[0]!r}")
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"a domain must be named once, got {', '.join(names)}")
    return {name: path for name, _, path in pairs}


def _fine_tuned(base: str, corpus: Any, chosen: dict[str, Any]) -> Segmenter:
    from .segmenter import Segmenter
    from .training import fine_tune

    refused = sorted(chosen.keys() - {"epochs", "rate", "seed"})
    if refused:
        raise ValueError(f"--base goes with --epochs, --rate and --seed, got --{refused[0].replace('_', '-')}")
    segmenter = Segmenter.load(base)
    for domain, part in corpus.items() if isinstance(corpus, dict) else [(None, corpus)]:
        with _epochs(chosen.get("epochs", 5)) as progress:
            segmenter = fine_tune(segmenter, part, domain, progress=progress, **chosen)
    return segmenter


def _adapted(options: Any) -> Segmenter:
    """The adapted model; what `adapt` reports is the output."""
    import json

    from .adaptation import adapt
    from .segmenter import Segmenter

    def tell(line: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"{line}\n")

    base = Segmenter.load(options.base or "default")
    chosen = {name: getattr(options, name) for name in ("epochs", "seed") if getattr(options, name) is not None}
    segmenter = adapt(
        base,
        Path(options.adapt),
        options.lexicon,
        options.name,
        dev=_corpora(options.dev) or None,
        progress=tell,
        **chosen,
    )
    sys.stdout.write(json.dumps(segmenter.info["adapted"][-1], ensure_ascii=False) + "\n")
    return segmenter


# evaluate


def _add_evaluate(commands: Any) -> None:
    parser = _command(commands, "evaluate", _evaluate, "Score a segmentation, or a model, against a gold standard.")
    parser.add_argument("gold", metavar="GOLD", help="a corpus")
    parser.add_argument("predicted", nargs="?", metavar="PREDICTED", help="a corpus (default: what the model cuts)")
    _add_segmenter(parser)
    parser.add_argument("--vocabulary", metavar="FILE", help="words of the training set, for the recall of others")
    parser.add_argument("--stream", action="store_true", help="compare whole files, whatever their lines are")
    parser.add_argument("--format", choices=["text", "json"], default="text", help="of the scores (default: text)")


def _evaluate(options: Any) -> None:
    import json
    from dataclasses import asdict

    from .corpus import read_corpus
    from .evaluation import evaluate

    gold: Any = options.gold
    predicted: Any = options.predicted
    if predicted is None:
        gold = read_corpus(gold)
        predicted = _segmenter(options).cut_many([sentence.text for sentence in gold])
    scores = evaluate(gold, predicted, vocabulary=options.vocabulary, stream=options.stream)
    sys.stdout.write(f"{json.dumps(asdict(scores)) if options.format == 'json' else scores}\n")


# model


def _add_model(commands: Any) -> None:
    parser = _command(commands, "model", lambda options: options.act(options), "Show, build or verify a model.")
    actions = parser.add_subparsers(required=True, metavar="info | build | verify")
    info = actions.add_parser("info", help="sizes, domains and provenance, as JSON")
    info.add_argument("model", nargs="?", default="default", help="name or path (default: the shipped one)")
    info.set_defaults(act=_info)
    verify = actions.add_parser("verify", help="check that a model is complete and unchanged")
    verify.add_argument("model", nargs="*", default=["default"], help="names or paths (default: the shipped one)")
    verify.set_defaults(act=_verify)
    build = actions.add_parser("build", help="build the shipped model from its sources")
    build.add_argument("--data", required=True, metavar="DIR", help="where the sources of the manifest are")
    build.add_argument("--without", action="append", default=[], metavar="SOURCE", help="leave a source out")
    build.add_argument("--dictionary", metavar="FILE", help="jieba's dict.txt (default: of the installed jieba)")
    build.add_argument("--characters", metavar="FILE", help="OpenCC's TSCharacters.txt (default: of opencc)")
    build.add_argument("--output", required=True, metavar="FILE", help="the model")
    build.set_defaults(act=_build)


def _info(options: Any) -> None:
    import json

    from .segmenter import Segmenter

    info = Segmenter.load(options.model).info
    sys.stdout.write(json.dumps(info, ensure_ascii=False, indent=2, default=str) + "\n")


def _verify(options: Any) -> None:
    from .segmenter import Segmenter

    for model in options.model:
        Segmenter.load(model)
        sys.stdout.write(f"{model}: complete and unchanged\n")


def _build(options: Any) -> None:
    from .model_build import build

    with _epochs(20) as progress:
        build(
            options.data,
            options.output,
            options.without,
            dictionary=options.dictionary,
            characters=options.characters,
            progress=progress,
        )


if __name__ == "__main__":
    sys.exit(main())
