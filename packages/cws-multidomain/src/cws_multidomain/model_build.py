"""Builds the shipped model from its sources: treebanks, jieba's dictionary, OpenCC's characters; no downloads."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _modelfile
from ._sentence import Sentence
from ._treebanks import own_tags_only, read_gsd, universal_tags_only
from .corpus import read_corpus
from .preparation import alternate_blocks, convert, without_duplicates
from .tagger import Tagger
from .training import Progress, _temperature, train

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["DOMAINS", "SOURCES", "Prepared", "Source", "build", "prepare", "read_variants"]

_BY_SA_4, _BY_SA_3 = "CC BY-SA 4.0", "CC BY-SA 3.0, whose section 4(b) allows later versions"
_HALF = "blocks of ten sentences: the even ones are trained on, the odd ones are held out"
_SIMPLIFIED = "each character as its simplified form"
_NO_TEST = "without the sentences that a held-out set has too"


@dataclass(frozen=True)
class Source:
    """Where a part of the model is from, and what was done to it."""

    files: tuple[str, ...]
    title: str
    url: str
    version: str
    licence: str
    attribution: str
    use: str
    changes: tuple[str, ...] = ()
    note: str = ""


SOURCES: Mapping[str, Source] = {
    "gsd": Source(
        ("udc_train.conll.xz",),
        "Universal Dependencies, Chinese GSD, training part",
        "https://github.com/UniversalDependencies/UD_Chinese-GSD",
        "UD v1 export",
        _BY_SA_4,
        "Mo Shen, Ryan McDonald, Daniel Zeman, Peng Qi, and the contributors of UD Chinese GSD",
        "domain wiki; parts of speech",
        (
            "the word . reads as 。",
            "words of Latin letters, or of digits, are apart by a space",
            "universal tags of UD v2",
            _NO_TEST,
        ),
        'The file is a UD v1 export; the note at UD v2.5 reads "Google gave permission to drop the "NC" restriction '
        "from the license. This applies to the UD annotations (not the underlying content, of which Google claims no "
        'ownership or copyright)".',
    ),
    "pud": Source(
        ("PUD_zh_pud-ud-test.conllu.xz",),
        "Universal Dependencies, Chinese PUD",
        "https://github.com/UniversalDependencies/UD_Chinese-PUD",
        "by its checksum",
        _BY_SA_3,
        "Hans Uszkoreit, Vivien Macketanz, Aljoscha Burchardt, Kim Harris, Katrin Marheinecke, Slav Petrov, Tolga "
        "Kayadelen, Mohammed Attia, Ali Elkahky, Zhuoran Yu, Emily Pitler, Saran Lertpradit, and the contributors of "
        "UD Chinese PUD",
        "domain news; parts of speech",
        (_HALF, _SIMPLIFIED, _NO_TEST),
    ),
    "hk": Source(
        ("HK_zh_hk-ud-test.conllu.xz",),
        "Universal Dependencies, Chinese HK",
        "https://github.com/UniversalDependencies/UD_Chinese-HK",
        "by its checksum",
        _BY_SA_4,
        "Tak-sum Wong, Kim Gerdes, Herman Leung, John Lee, and the contributors of UD Chinese HK",
        "domain spoken; parts of speech",
        (_HALF, _SIMPLIFIED, _NO_TEST),
    ),
    "cfl": Source(
        ("CFL_zh_cfl-ud-test.conllu.xz",),
        "Universal Dependencies, Chinese CFL",
        "https://github.com/UniversalDependencies/UD_Chinese-CFL",
        "by its checksum",
        _BY_SA_4,
        "John Lee, Herman Leung, Keying Li, and the contributors of UD Chinese CFL",
        "domain learner; parts of speech",
        (_HALF, _NO_TEST),
    ),
    "gsdsimp": Source(
        ("GSDSimp_zh_gsdsimp-ud-dev.conllu.xz", "GSDSimp_zh_gsdsimp-ud-test.conllu.xz"),
        "Universal Dependencies, Chinese GSDSimp, development and test parts",
        "https://github.com/UniversalDependencies/UD_Chinese-GSDSimp",
        "by its checksum",
        _BY_SA_4,
        "Peng Qi, Koichi Yasuoka, and the contributors of UD Chinese GSDSimp",
        "no weight: the temperature of probabilities is fitted to the development part, and sentences of either part "
        "are left out of training",
    ),
    "jieba": Source(
        ("dict.txt",),
        "jieba, its dictionary",
        "https://pypi.org/project/jieba/",
        "0.42.1",
        "MIT",
        "Copyright (c) 2013 Sun Junyi",
        "lexicon: 349,046 words with their counts",
        ("parts of speech are left out",),
        "jieba does not document where its counts are from.",
    ),
    "opencc": Source(
        ("TSCharacters",),
        "OpenCC, its table of traditional characters",
        "https://pypi.org/project/opencc/",
        "1.4.2",
        "Apache-2.0",
        "Carbo Kuo and the contributors of OpenCC",
        "traditional characters have the weights of simplified ones",
        ("the first choice for each character",),
    ),
}
DOMAINS = {"gsd": "wiki", "pud": "news", "hk": "spoken", "cfl": "learner"}
_NEEDED = ("gsdsimp", "jieba", "opencc")
_OPTIONS: dict[str, Any] = {"epochs": 20, "domain_dropout": 0.1, "feature_dropout": 0.2, "max_bytes": 1_200_000}


@dataclass(frozen=True)
class Prepared:
    """What the model is trained on, and what it is not.

    Attributes:
        train: sentences by source.
        held_out: sentences by source, of the same treebanks or of GSDSimp's test part.
        dev: GSDSimp's development part.
    """

    train: dict[str, list[Sentence]]
    held_out: dict[str, list[Sentence]]
    dev: list[Sentence]


def build(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    without: Iterable[str] = (),
    *,
    dictionary: str | os.PathLike[str] | None = None,
    characters: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Build the shipped model, and `manifest.json` beside it; on one machine the same sources give the same bytes.

    Args:
        data: the folder of the treebanks, whose files have the names in :data:`SOURCES`.
        output: the model file.
        without: treebanks to leave out, by their names in :data:`DOMAINS`.
        dictionary: jieba's ``dict.txt``; None (default): that of the installed package jieba.
        characters: OpenCC's ``TSCharacters.txt``; None (default): the table of the installed package opencc.
        progress: called after each epoch.
        options: of :func:`train`, in place of those of the shipped model.

    Returns:
        The manifest: of each source its title, address, version, licence, attribution, changes, and SHA-256 of files.

    Raises:
        FileNotFoundError: files that are missing from `data`, all named.
        ValueError: a name in `without` that is none of a treebank, or all of them.
        ImportError: jieba or opencc is needed and not installed.
    """
    without = _checked(without)
    chosen = {name: source for name, source in SOURCES.items() if name not in without}
    paths = _paths(Path(data), chosen, dictionary, characters)
    sums = {name: {file: _sha256(path) for file, path in files.items()} for name, files in paths.items()}
    variants = read_variants(characters)
    prepared = prepare(data, without, variants)
    about = {"name": "default", "licence": _BY_SA_4, "sources": _manifest(chosen, sums)}
    segmenter = train(
        {DOMAINS[name]: part for name, part in prepared.train.items()},
        dictionaries=[paths["jieba"]["dict.txt"]],
        variants=variants,
        metadata=about,
        threads=1,
        progress=progress,
        **{**_OPTIONS, **options},
    )
    tagger = Tagger.train(_tagged(prepared.train), folding={ord(a): ord(b) for a, b in variants.items()}, threads=1)
    numbers = np.array(segmenter._model.sections["numbers"].view("<f8"))
    numbers[1] = _temperature(segmenter, {DOMAINS["gsd"]: list(prepared.dev)})
    sections = {"numbers": numbers.astype("<f8").tobytes(), **tagger.to_sections()}
    _modelfile.write(output, _modelfile.replace(segmenter._model, sections))
    manifest = {**about, "model": {"file": Path(output).name, "sha256": _sha256(Path(output))}}
    text = json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
    _modelfile.write(Path(output).with_name("manifest.json"), text.encode())
    return manifest


def prepare(
    data: str | os.PathLike[str], without: Iterable[str] = (), variants: Mapping[str, str] | None = None
) -> Prepared:
    """The sentences of the treebanks, as the shipped model is trained and tested on them.

    Args:
        data: the folder of the treebanks.
        without: treebanks to leave out, by their names in :data:`DOMAINS`.
        variants: traditional characters and their simplified forms; None (default): texts stay as they are.
    """
    without = _checked(without)
    folder = Path(data)
    table = str.maketrans(dict(variants or {}))

    def read(source: str, file: int = 0) -> list[Sentence]:
        path = folder / SOURCES[source].files[file]
        sentences = read_gsd(path) if source == "gsd" else read_corpus(path)
        return convert([s for s in sentences if isinstance(s, Sentence)], lambda text: text.translate(table))

    train_on: dict[str, list[Sentence]] = {}
    held_out: dict[str, list[Sentence]] = {"gsd": read("gsdsimp", 1)}
    dev = read("gsdsimp")
    for name in DOMAINS:
        if name in without:
            continue
        if name == "gsd":
            train_on[name] = [_spaced(sentence) for sentence in read(name)]
        else:
            train_on[name], held_out[name] = alternate_blocks(read(name))
    tests = [dev, *held_out.values()]
    for name, part in train_on.items():
        train_on[name] = [s for s in without_duplicates(part, *tests) if isinstance(s, Sentence)]
    return Prepared(train_on, held_out, dev)


def read_variants(characters: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """Traditional characters and their simplified forms, by OpenCC.

    Args:
        characters: OpenCC's ``TSCharacters.txt``; None (default): the table of the installed package opencc.

    Raises:
        ImportError: that package is needed and not installed.
    """
    if characters is not None:
        rows = [line.split() for line in Path(characters).read_text(encoding="utf-8").splitlines()]
        pairs = [(row[0], row[1]) for row in rows if len(row) > 1]
    else:
        _folder("opencc")
        from opencc import OpenCC

        simplified = OpenCC("t2s").convert
        ideographs = [*range(0x3400, 0xA000), *range(0xF900, 0xFB00), *range(0x20000, 0x33480)]
        pairs = [(chr(point), simplified(chr(point))) for point in ideographs]
    found = {a: b for a, b in pairs if a != b and len(a) == len(b) == 1}
    return {**found, "著": "着"}  # OpenCC leaves it, as it is also simplified; but mostly it is the particle


def _checked(without: Iterable[str]) -> frozenset[str]:
    names = frozenset([without] if isinstance(without, str) else without)
    for name in sorted(names):
        if name not in DOMAINS:
            raise ValueError(f"without must be among {', '.join(DOMAINS)}, got {name!r}")
    if len(names) == len(DOMAINS):
        raise ValueError("without must leave a treebank to train on, got all of them")
    return names


def _paths(
    data: Path,
    sources: Mapping[str, Source],
    dictionary: str | os.PathLike[str] | None,
    characters: str | os.PathLike[str] | None,
) -> dict[str, dict[str, Path]]:
    """The files of each source, by the names in its list."""
    elsewhere = {
        "jieba": Path(dictionary) if dictionary is not None else _folder("jieba") / "dict.txt",
        "opencc": Path(characters) if characters is not None else _folder("opencc") / _OCD,
    }
    paths = {name: {f: elsewhere.get(name, data / f) for f in source.files} for name, source in sources.items()}
    missing = [str(path) for files in paths.values() for path in files.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"the sources of the model must be there, but these are missing: {', '.join(missing)}")
    return paths


_OCD = Path("clib", "share", "opencc", "TSCharacters.ocd2")


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"building the model needs the package {package}: pip install {package}")
    return Path(found.submodule_search_locations[0])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _manifest(sources: Mapping[str, Source], sums: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    rows = []
    for name, source in sources.items():
        row = {"name": name, **{key: value for key, value in vars(source).items() if key != "files" and value}}
        rows.append({**row, "sha256": dict(sums[name])})
    return rows


def _spaced(sentence: Sentence) -> Sentence:
    """A sentence whose words of Latin letters, or of digits, are apart, as they were in the text."""

    def kind(character: str) -> int:
        return 1 if character.isdecimal() else 2 if character.isascii() and character.isalpha() else 0

    words = sentence.words
    apart = [kind(a[-1]) == kind(b[0]) != 0 for a, b in itertools.pairwise(words)]
    return replace(sentence, spaces=(*apart, False))


def _tagged(parts: Mapping[str, Sequence[Sentence]]) -> list[Sentence]:
    """Sentences with GSD's own tags as far as they are known; without GSD, with the tags that they have."""
    if "gsd" not in parts:
        return [sentence for part in parts.values() for sentence in part]
    sentences = list(parts["gsd"]) + own_tags_only(parts.get("pud", ()))
    return sentences + universal_tags_only(s for name in ("hk", "cfl") for s in parts.get(name, ()))
