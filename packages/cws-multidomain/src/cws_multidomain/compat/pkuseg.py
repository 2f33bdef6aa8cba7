"""pkuseg's interface: `from cws_multidomain.compat import pkuseg`. Models are read from disk; nothing is downloaded.

With a model of pkuseg or spacy-pkuseg the output is theirs, word for word. Without one, `"default"` is our own model.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _pkuseg
from .._core import PkusegDictionary, PkusegModel
from ..evaluation import evaluate

if TYPE_CHECKING:
    from ..segmenter import Segmenter

__all__ = ["Training", "pkuseg", "test", "train"]

Words = str | os.PathLike[str] | Iterable[str | tuple[str, str]] | None

_NAMED = ("spacy_ontonotes", "medicine", "tourism", "web", "news", "mixed")  # what the reference downloads
_WITH_DICTIONARY = ("medicine", "tourism")


class pkuseg:
    """Cuts texts as pkuseg does.

    Args:
        model_name: the directory of a model of pkuseg or spacy-pkuseg; or the name of one (`"medicine"`, ...) that the
            reference has put into `~/.pkuseg` or `$PKUSEG_HOME`. Default: `"default"`, the model in this package,
            which is not pkuseg's.
        user_dict: words that are cut first: the path of a file with a word, or word and tag between tabs, a line; or
            words, or pairs of words and tags. The default, `"default"`, has none. Anything but None also merges, after
            the model, runs of tokens that are words of the reference's list (390,000 words, which usually harms):
            `merge`, or a `default.pkl` beside the model. For our own model nothing is merged.
        postag: whether `cut` gives pairs of words and parts of speech; also the directory of a postag model. Default:
            False. True takes `~/.pkuseg/postag`; for our own model its own tagger.
        fixes: whether the longest user word ends where it ends. Default: False, as in the reference, where characters
            that were tried for a longer word stay with the shorter one.
        merge: paths of pickled word lists to merge with. Default: None, those found.

    Raises:
        FileNotFoundError: no such model; lists what was searched.
        ValueError: a file is broken, or a pickle asks for more than plain values.

    Example::

        segmenter = pkuseg("models/news", user_dict=None)
        segmenter.cut("我爱北京天安门")

    Reference: Luo et al., "PKUSEG: A Toolkit for Multi-Domain Chinese Word Segmentation", 2019.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] = "default",
        user_dict: Words = "default",
        postag: bool | str | os.PathLike[str] = False,
        *,
        fixes: bool = False,
        merge: Iterable[str | os.PathLike[str]] | None = None,
    ) -> None:
        self.postag = bool(postag)
        self._fixes = fixes
        words = [] if user_dict is None or user_dict in ("default", *_NAMED) else _user_words(user_dict)
        self._tags = [""] + [tag for word, tag in words if word]
        self._model: _pkuseg.Model | None = None
        self._segmenter: Segmenter | None = None
        self._core: PkusegModel | None = None  # where nothing but it is needed
        self._tagger: _pkuseg.Tagger | None = None
        if model_name == "default":
            from ..segmenter import Segmenter

            self._segmenter = Segmenter.load("default")
            forced = {word: "force" for word, _ in words if word and word.split() == [word]}
            if forced:
                self._segmenter.add_words(forced)
            self._user_tags = {word: tag for word, tag in words if tag}
            return
        directory = _directory(model_name)
        self._words = [word for word, _ in words if word]
        self._merge = [] if user_dict is None else _merged(model_name, directory, merge)
        self._dictionary = self._compiled()
        self._model = _pkuseg.Model.load(directory)
        if postag:
            self._tagger = _pkuseg.Tagger(_home() / "postag" if postag is True else postag)
        else:
            self._core = self._model.core

    def _compiled(self) -> PkusegDictionary | None:
        if not self._words and not self._merge:
            return None
        return PkusegDictionary(self._words, [word for path in self._merge for word in _pkuseg.read_words(path)])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_dictionary", "_core")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._core = None
        if self._model is not None:
            self._dictionary = self._compiled()
            self._core = None if self.postag else self._model.core

    def cut(self, txt: str) -> list[Any]:
        """The words of a text, without whitespace; with `postag` pairs of words and tags."""
        if self._core is not None and isinstance(txt, str):
            return self._core.cut(txt, self._dictionary, self._fixes)
        if not isinstance(txt, str):
            raise TypeError(f"txt must be a str, got {type(txt).__name__}")
        if self._segmenter is not None:
            if not self.postag:
                return list(self._segmenter.cut(txt))
            return [(t.text, self._user_tags.get(t.text) or t.pos or "") for t in self._segmenter.tokenize(txt)]
        assert self._model is not None
        assert self._tagger is not None
        words, user = self._model.core.cut_user(txt, self._dictionary, self._fixes)
        return [(word, self._tags[u] or tag) for word, u, tag in zip(words, user, self._tagger.tag(words), strict=True)]


def test(
    input_file: str | os.PathLike[str],
    output_file: str | os.PathLike[str],
    model_name: str | os.PathLike[str] = "default",
    user_dict: Words = "default",
    nthread: int = 10,
    postag: bool | str | os.PathLike[str] = False,
    verbose: bool = False,
) -> None:
    """Cuts a file line by line; words are joined by spaces, and to their tags by slashes.

    Args:
        input_file, output_file: paths; the output appears whole or not at all.
        model_name, user_dict, postag: as for `pkuseg`.
        nthread: at least 1; the result does not depend on it, and one is enough.
        verbose: whether to print the times of loading and of cutting.
    """
    if nthread < 1:
        raise ValueError(f"nthread must be at least 1, got {nthread}")
    if not Path(input_file).is_file():
        raise FileNotFoundError(f"input_file {input_file} does not exist")
    times = [time.perf_counter()]
    segmenter = pkuseg(model_name, user_dict, postag)
    times.append(time.perf_counter())
    lines = _pkuseg.read_text(input_file).split("\n")
    if not lines[-1]:
        lines.pop()
    joined = "/".join if segmenter.postag else str
    text = "\n".join(" ".join(map(joined, segmenter.cut(line))) for line in lines)
    aside = Path(f"{output_file}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(text.encode())
        aside.replace(output_file)
    finally:
        aside.unlink(missing_ok=True)
    times.append(time.perf_counter())
    if verbose:
        print(f"load_model:\t{times[1] - times[0]:.3f}\nword_seg:\t{times[2] - times[1]:.3f}")


class Training(NamedTuple):
    """What `train` reports: the objective after each epoch, and precision, recall and F (%) on the test file."""

    objective: list[float]
    precision: float
    recall: float
    f1: float


def train(
    trainFile: str | os.PathLike[str],
    testFile: str | os.PathLike[str],
    savedir: str | os.PathLike[str],
    train_iter: int = 20,
    init_model: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    reference: bool = True,
) -> Training:
    """Trains a model that pkuseg, spacy-pkuseg and we load.

    Args:
        trainFile, testFile: a sentence per line, words between spaces. The test file is only scored, once, at the end.
        savedir: where the model goes; made if need be.
        train_iter: epochs. Default: 20.
        init_model: the directory of a model to go on from. Default: None.
        seed: of the order of sentences; the same as after `random.seed(seed)` in the reference. Default: 0.
        reference: whether to compute in float64 as the reference does, or in float32 ten times as fast. Default: True.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file has no words, or is not UTF-8.
    """
    for name, path in (("trainFile", trainFile), ("testFile", testFile)):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{name} {path} does not exist")
    gold = [words for line in _pkuseg.read_text(testFile).split("\n") if (words := line.split())]
    if not gold:
        raise ValueError(f"{testFile}: must have at least one word, got none")
    text = _pkuseg.read_text(trainFile)
    if not text or text.isspace():
        raise ValueError(f"{trainFile}: must have at least one word, got none")
    init = None if init_model is None else _pkuseg.Model.load(_directory(init_model))
    model = _pkuseg.train(text, epochs=train_iter, seed=seed, init=init, reference=reference)
    model.save(savedir)
    scores = evaluate(gold, [model.cut("".join(words)) for words in gold])
    return Training(model.objective, 100 * scores.precision, 100 * scores.recall, 100 * scores.f1)


def _home() -> Path:
    return Path(os.environ.get("PKUSEG_HOME", "~/.pkuseg")).expanduser()


def _directory(model_name: str | os.PathLike[str]) -> Path:
    searched = [Path(model_name)] if str(model_name) not in _NAMED else [_home() / model_name]
    for directory in searched:
        if directory.is_dir():
            return directory
    raise FileNotFoundError(
        f"model_name must be 'default' or a directory with {_pkuseg.WEIGHTS} and one of "
        f"{', '.join(_pkuseg.FEATURES)}; searched {', '.join(map(str, searched))}; nothing is downloaded"
    )


def _user_words(source: str | os.PathLike[str] | Iterable[str | tuple[str, str]]) -> list[tuple[str, str]]:
    """Words and tags."""
    if isinstance(source, str | os.PathLike):
        rows = [line.strip().split("\t") for line in _pkuseg.read_text(source).split("\n")]
        return [(row[0].strip(), row[1].strip() if len(row) > 1 else "") for row in rows]
    words = []
    for k, entry in enumerate(source):
        pair = (entry, "") if isinstance(entry, str) else tuple(entry) if isinstance(entry, Iterable) else ()
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise TypeError(f"user_dict must have words, or pairs of a word and a tag, got {entry!r} at index {k}")
        words.append((pair[0].strip(), pair[1].strip()))
    return words


def _merged(
    model_name: str | os.PathLike[str], directory: Path, merge: Iterable[str | os.PathLike[str]] | None
) -> list[Path]:
    """The files of words to merge."""
    if merge is not None:
        return [Path(path) for path in merge]
    paths = [path for path in (directory / "default.pkl", _home() / "default.pkl") if path.is_file()][:1]
    if not paths:
        warnings.warn(
            f"user_dict other than None merges the words of the reference's default.pkl, and {directory} has none: "
            "nothing is merged; pass merge=[path of default.pkl], or merge=[] to say so",
            UserWarning,
            stacklevel=3,
        )
    if str(model_name) in _WITH_DICTIONARY:
        paths += [path for path in (directory / f"{model_name}_dict.pkl",) if path.is_file()]
    return paths
