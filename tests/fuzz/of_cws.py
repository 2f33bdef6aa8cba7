"""cws-multidomain under hostile files, texts and arguments."""

from __future__ import annotations

import io
import pickle
import struct
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from fuzz.choices import Choices
from fuzz.targets import REFUSALS, Target, need

from cws_multidomain import Segmenter, Tagger, bootstrap, compare, evaluate, read_corpus, sentence_counts, train
from cws_multidomain._core import crc32c, pkuseg_load
from cws_multidomain.cli import main
from cws_multidomain.compat import jieba, pkuseg
from cws_multidomain.segmenter import GRANULARITIES, RULES, UNITS

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "中国人民在北京大学学习，他说：3.14％好 a@b.cn\n𠮷野家的\t一二三"
SENTENCES = [["中国", "人民", "在"], ["他", "说", "好"]] * 3
_TAGS = dict(zip(["中国", "人民", "在", "他", "说", "好"], ["NR", "NN", "P", "PN", "VV", "VA"], strict=True))
_FORMATS = ("auto", "words", "word_POS", "word/POS", "conllu", "partial", "brackets")


@cache
def small() -> Segmenter:
    tagger = Tagger.train([[(word, _TAGS[word]) for word in sentence] for sentence in SENTENCES], epochs=1)
    plain = train({"a": SENTENCES, "b": SENTENCES}, epochs=1)
    return Segmenter.from_weights(plain.weights(), sections=tagger.to_sections())


@cache
def shipped() -> Segmenter:
    return Segmenter.load()


def prepare() -> None:
    """What all targets need, before they are timed."""
    small()
    _pkuseg_files()
    shipped().tokenize(TEXT)


def _is_cut(tokens: list[str], text: str) -> None:
    need("".join(tokens) == "".join(text.split()), f"the tokens must be the text, got {tokens!r} for {text!r}")


def _exercise(segmenter: Segmenter, text: str = TEXT) -> None:
    """All that a model can be asked, whatever it answers."""
    _is_cut(segmenter.cut(text), text)
    tokens = segmenter.tokenize(text)
    need(all(text[t.start : t.end] == t.text for t in tokens), "offsets must be those of the tokens")
    p = segmenter.probabilities(text)
    need(p.shape == (len(text),) and bool(((p >= 0) & (p <= 1.000001)).all()), f"probabilities must be some, got {p}")
    for segmentation, _ in segmenter.nbest(text, 3):
        _is_cut(segmentation, text)
    need(all(0 <= x <= 1.000001 for x in segmenter.gate(text).values()), "a gate must have probabilities")
    segmenter.explain(text)
    repr(segmenter)
    repr(segmenter.info)


# Files.


def _model(data: bytes, folder: Path) -> None:
    path = folder / "model.cws"
    path.write_bytes(data)
    segmenter = Segmenter.load(path)
    segmenter.save(folder / "again.cws")
    need((folder / "again.cws").read_bytes() == data, "a model must be saved as it was")
    for domain in segmenter.domains:
        segmenter.with_domain(domain).cut(TEXT)
    try:
        _exercise(segmenter)
        segmenter.weights()
        for k in range(segmenter._model.n_lexicons):
            segmenter.dictionary(k)
        if segmenter.tagger:
            segmenter.tagger.upos(["中国", "a"])
    except ValueError as error:  # what is looked at when it is first asked for
        need(not isinstance(error, UnicodeError), f"a bare {error!r}")
        need("section" in str(error) or "pos." in str(error), f"an unsound section must be named: {error!r}")
    segmenter.add_words(["北京大学", "好a"])
    _is_cut(segmenter.cut(TEXT), TEXT)


def _model_mended(data: bytes) -> bytes:
    """With sizes and checksums that fit."""
    if len(data) < 64:
        return data
    head = data[:16] + struct.pack("<QI", len(data), crc32c(data[64:]))
    return head + struct.pack("<I", crc32c(head)) + bytes(32) + data[64:]


def _section(data: bytes, folder: Path) -> None:
    """A model of which one section is the enemy's; the first byte says which."""
    from cws_multidomain._modelfile import replace, to_bytes

    names = _sections()
    model = replace(small()._model, {names[data[0] % len(names)] if data else "shape": data[1:]})
    if data and names[data[0] % len(names)] == "metadata":
        sections = {name: x.tobytes() for name, x in small()._model.sections.items()}
        model = to_bytes({}, {**sections, "metadata": data[1:]})
    _model(model, folder)


@cache
def _sections() -> list[str]:
    return sorted(small()._model.sections)


def _section_seeds() -> list[bytes]:
    found = [bytes([k]) + small()._model.sections[name].tobytes() for k, name in enumerate(_sections())]
    return [data for data in found if 1 < len(data) < 30_000]


def _tagger(data: bytes, folder: Path) -> None:
    """The sections of a tagger; which one is the enemy's, the first byte says."""
    sections = small().tagger.to_sections() if small().tagger else {}
    name = sorted(sections)[data[0] % len(sections)] if data else "pos.tags"
    tagger = Tagger.from_sections({**sections, name: data[1:]})
    tags = tagger.tag(["中国", "人民", "a", "\ud800"])
    need(len(tags) == 4 and set(tags) <= set(tagger.tags), f"tags must be the tagger's, got {tags}")
    repr(tagger.info)


def _tagger_seeds() -> list[bytes]:
    sections = small().tagger.to_sections()
    return [bytes([k]) + sections[name] for k, name in enumerate(sorted(sections)) if len(sections[name]) < 100_000]


def _words(data: bytes, folder: Path) -> None:
    path = folder / "words.txt"
    path.write_bytes(data)
    segmenter = shipped().with_domain("general")
    segmenter.add_words(path)
    _is_cut(segmenter.cut(TEXT), TEXT)
    need(all(word.split() == [word] for word in segmenter.words), "words must have no white space")


def _corpus(data: bytes, folder: Path) -> None:
    """A corpus; the first byte says what format it is read as, and whether it is compressed."""
    kind = data[0] if data else 0
    path = folder / ("corpus" + (".txt", ".gz", ".bz2", ".xz")[kind // 8 % 4])
    path.write_bytes(data[1:])
    errors = ("strict", "replace")[kind // 32 % 2]
    sentences = read_corpus(path, _FORMATS[kind % 8 % 7], errors=errors)
    for sentence in sentences:
        need(isinstance(sentence.text, str), "a sentence must have a text")
    if sentences:
        evaluate(sentences, sentences) if all(hasattr(s, "words") for s in sentences) else None


def _corpus_seeds() -> list[bytes]:
    import bz2
    import gzip
    import lzma

    words = "中国 人民 在 北京\n他 说 ： 好\n".encode()
    conllu = (
        "# text = 中国人民 好\n"
        "1-2\t中国人民\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No\n"
        "1\t中国\t_\tPROPN\tNR\t_\t0\troot\t_\t_\n"
        "2\t人民\t_\tNOUN\tNN\t_\t1\tdep\t_\t_\n"
        "2.1\tx\t_\t_\t_\t_\t_\t_\t_\t_\n"
        "3\t好\t_\tADJ\tVA\t_\t1\tdep\t_\t_\n\n"
    )
    return [
        b"\x00" + words,
        b"\x01" + words,
        b"\x02" + "中国_NR 人民_NN\n<S ID=1>\n好_VA\n".encode(),
        b"\x03" + "[中央/n 电视台/n]nt 说/v\n19980101-01-001-001/m 好/a\n".encode(),
        b"\x04" + conllu.encode(),
        b"\x00" + conllu.encode(),
        b"\x05" + "中-国|人 民\\|好\n".replace("\\|", "|").encode(),
        b"\x06" + "( (IP (NP (NR 中国)) (VP (VA 好) (-NONE- *T*)) (PU -LRB-)))\n".encode(),
        b"\x08" + gzip.compress(words, mtime=0),
        b"\x10" + bz2.compress(words),
        b"\x18" + lzma.compress(words),
    ]


def _jieba_dictionary(data: bytes, folder: Path) -> None:
    path = folder / "dict.txt"
    path.write_bytes(data)
    tokenizer = jieba.Tokenizer(path)
    for text in (TEXT, "北京大学生"):
        need("".join(tokenizer.lcut(text, HMM=False)) == text, "jieba's tokens must be the text")
        tokenizer.lcut(text, cut_all=True)
        tokenizer.lcut_for_search(text, HMM=False)
    tokenizer.get_FREQ("北京")
    tokenizer.suggest_freq(("北", "京"))


def _jieba_user(data: bytes, folder: Path) -> None:
    path = folder / "user.txt"
    path.write_bytes(data)
    tokenizer = jieba.Tokenizer({"北京": 30, "大学": 20, "北京大学": 50})
    tokenizer.load_userdict(path)
    need("".join(tokenizer.lcut(TEXT, HMM=False)) == TEXT, "jieba's tokens must be the text")
    need("".join(tokenizer.lcut(TEXT)) == TEXT, "jieba's tokens must be the text")


@cache
def _pkuseg_files() -> dict[str, bytes]:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name, "train.txt")
        corpus.write_text("\n".join(" ".join(sentence) for sentence in SENTENCES), encoding="utf-8")
        pkuseg.train(str(corpus), str(corpus), str(Path(name, "model")), train_iter=1)
        folder = next(Path(name).rglob("weights.npz")).parent
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _pkuseg(name: str) -> Any:
    def run(data: bytes, folder: Path) -> None:
        model = folder / "model"
        model.mkdir()
        for other, content in _pkuseg_files().items():
            if not (name.startswith("features") and other.startswith("features")):
                (model / other).write_bytes(content)
        (model / name).write_bytes(data)
        _is_cut(pkuseg.pkuseg(str(model)).cut("中国人民在北京"), "中国人民在北京")

    return run


def _pkuseg_features(form: str) -> list[bytes]:
    import json

    files = _pkuseg_files()
    features = pkuseg_load(files["features.msgpack"], "msgpack")
    if form == "pkl":
        return [pickle.dumps(features, protocol) for protocol in (0, 2, 4)]
    return [json.dumps(features).encode()]


def _pkuseg_dictionary(data: bytes, folder: Path) -> None:
    """A pickled dictionary, of which nothing may be executed."""
    import tempfile
    from pathlib import Path

    (folder / "words.pkl").write_bytes(data)
    with tempfile.TemporaryDirectory() as name:
        for other, content in _pkuseg_files().items():
            Path(name, other).write_bytes(content)
        pkuseg.pkuseg(name, user_dict=["中国"], merge=[folder / "words.pkl"]).cut("中国人民")


def _cli(data: bytes, folder: Path) -> None:
    """Commands on a file of any bytes; the first says which."""
    kind = data[0] if data else 0
    (folder / "in.txt").write_bytes(data[1:])
    path, out = str(folder / "in.txt"), str(folder / "out.txt")
    arguments = [
        ["cut", path, "--output", out],
        ["cut", path, "--output", out, "--errors=replace", "--format=jsonl"],
        ["cut", path, "--output", out, "--words", path, "--granularity=search"],
        ["pos", path, "--output", out],
        ["evaluate", path, path],
        ["evaluate", path, "--vocabulary", path, "--stream"],
        ["model", "info", path],
        ["train", path, "--output", out, "--epochs=1"],
        ["cut", path, "--output", out, "--model", path],
    ][kind % 9]
    said, told = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(told):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code
    need(code in (0, 1, 2), f"the exit code must be 0, 1 or 2, got {code}")
    need("Traceback" not in told.getvalue(), told.getvalue())
    need(code == 0 or told.getvalue().strip(), "an error must be told")
    need(code == 0 or not (folder / "out.txt").exists(), "a command that failed must not leave an output")
    need({p.name for p in folder.iterdir()} <= {"in.txt", "out.txt"}, "nothing half-written must be left")


# Texts and arguments.


def _text(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    segmenter = shipped().with_domain(choices.pick(shipped().domains))
    segmenter.rules = {name for name in RULES if choices.chance(2)}
    segmenter.granularity = choices.pick(GRANULARITIES)
    for _ in range(choices.below(3)):
        word, cost = choices.text(), choices.pick((-4.0, "force", "forbid", 1e30, -1e30, 0, -1))
        try:
            segmenter.add_words({word: cost})
        except ValueError as error:
            need(str(error), "a refusal must have words")
    text = choices.text()
    tokens = segmenter.cut(text)
    if segmenter.granularity != "search":
        _exercise(segmenter, text)
    need(segmenter.cut_many([text, "", text]) == [tokens, [], tokens], "many texts must be cut as one")
    unit = choices.pick(UNITS)
    try:
        offsets = segmenter.offsets([text], unit)
    except ValueError:
        need(unit == "byte" and any(0xD800 <= ord(c) < 0xE000 for c in text), f"{unit} must have offsets for {text!r}")
        return
    width, coding = {"char": (4, "utf-32-le"), "byte": (1, "utf-8"), "utf16": (2, "utf-16-le")}[unit]
    coded = text.encode(coding, "surrogatepass")
    found = [coded[width * a : width * b].decode(coding, "surrogatepass") for a, b in offsets[0]]
    need(found == tokens or unit != "char", f"offsets must be those of the tokens, got {found} for {tokens}")


def _utf8(data: bytes, folder: Path) -> None:
    segmenter = shipped()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    try:
        offsets = segmenter.offsets_utf8(data, "char")
    except ValueError:
        need(text is None, f"UTF-8 must be taken: {data!r}")
        raise
    need(text is not None, f"what is no UTF-8 must be refused: {data!r}")
    lines = (text or "").split("\n")
    lines = lines[:-1] if not lines[-1] else lines
    need(len(offsets) == len(lines), f"there must be {len(lines)} lines, got {len(offsets)}")
    for k, line in enumerate(lines):
        _is_cut([line[a:b] for a, b in offsets[k]], line)


def _arguments(data: bytes, folder: Path) -> None:
    """Any method with any argument."""
    choices = Choices(data)
    segmenter = shipped().with_domain("general")
    value = partial(choices.value, tensors=False)
    calls: list[Any] = [
        lambda: segmenter.cut(value()),
        lambda: segmenter.tokenize(value()),
        lambda: segmenter.cut_many(value(small=True), value(small=True)),
        lambda: segmenter.offsets(value(small=True), value(), value(small=True)),
        lambda: segmenter.offsets([value(), value()]),
        lambda: segmenter.offsets_utf8(choices.array(((8,),)), value()),
        lambda: segmenter.nbest(TEXT, value(small=True)),
        lambda: segmenter.probabilities(TEXT, value()),
        lambda: segmenter.gate(value()),
        lambda: segmenter.explain(value()),
        lambda: segmenter.with_domain(value()),
        lambda: segmenter.with_domain({"general": value(), choices.pick(segmenter.domains): value()}),
        lambda: segmenter.add_words({value() if choices.chance(3) else "中国": value()}),
        lambda: segmenter.add_words([value()]),
        lambda: segmenter.add_words(value()),
        lambda: setattr(segmenter, "rules", value()),
        lambda: setattr(segmenter, "granularity", value()),
        lambda: segmenter.dictionary(value()),
        lambda: Segmenter.load(value(), value()),
        lambda: Segmenter.from_bytes(value()),
        lambda: small().tagger and small().tagger.tag(value()),
        lambda: small().tagger and small().tagger.tag_many([value(), ["中国", value()]], value(small=True)),
        lambda: evaluate(value(), [["a", "b"]]),
        lambda: evaluate([["a", "b"], value()], [["ab"], value()], vocabulary=value(), stream=value()),
        lambda: bootstrap([["a", "b"]], [["ab"]], samples=value(small=True), seed=value()),
        lambda: compare([["a", "b"]], [["ab"]], [["a", value()]], samples=value(small=True), seed=value()),
        lambda: sentence_counts(value(), value()),
        lambda: read_corpus(value(), value(), errors=value(), encoding=value()),
        lambda: Tagger.train([[("我", value()), (value(), "VV")]] * 2, epochs=1),
        lambda: jieba.Tokenizer(value()).lcut(value(), value(), value()),
        lambda: jieba.Tokenizer({"北京": value(), value() if choices.chance(2) else "大": 1}).lcut("北京", HMM=False),
        lambda: jieba.Tokenizer({"北京": 1}).add_word(value(), value(), value()),
        lambda: jieba.Tokenizer({"北京": 1}).suggest_freq(value(), value()),
    ]  # fmt: skip
    try:
        choices.pick(calls)()
    finally:
        _is_cut(shipped().cut(TEXT), TEXT)


def _options(data: bytes, folder: Path) -> None:
    """Training with strange options."""
    choices = Choices(data)
    good: dict[str, Any] = {"epochs": 1}
    names = (
        "epochs",
        "rate",
        "updates",
        "upper",
        "lower",
        "l2",
        "domain_dropout",
        "feature_dropout",
        "vocabulary",
        "variants",
        "max_bytes",
        "seed",
        "threads",
        "shards",
        "reference",
        "device",
        "metadata",
        "progress",
        "dev",
        "dictionaries",
        "templates",
        "unknown",
    )
    for _ in range(1 + choices.below(2)):
        good[choices.pick(names)] = choices.value(small=True, tensors=False)
    if isinstance(good["epochs"], int | float) and good["epochs"] > 3:
        good["epochs"] = 3
    model = train(SENTENCES[:3], **good)
    if isinstance(model, Segmenter):
        _is_cut(model.cut(TEXT), TEXT)


_SEED_WORDS = ["北京大学\n云计算\t12\n好 3 n\n中国 nr\n".encode(), b"\xef\xbb\xbf" + "中国\r\n人民\r\n".encode()]

TARGETS = [
    Target("cws-model", _model, "model.cws", mend=_model_mended, seeds=lambda: [small()._model.data.tobytes()]),
    Target("cws-section", _section, "model.cws", seeds=_section_seeds),
    Target("cws-tagger", _tagger, seeds=_tagger_seeds),
    Target("cws-words", _words, "", seeds=lambda: _SEED_WORDS),
    Target("cws-corpus", _corpus, "corpus", seeds=_corpus_seeds),
    Target(
        "cws-jieba-dictionary", _jieba_dictionary, "", seeds=lambda: ["北京 30 n\n大学 20\n北京大学 50 nt\n".encode()]
    ),
    Target("cws-jieba-user", _jieba_user, "", seeds=lambda: ["云计算 5\n好 3 n\n中国人\n\n".encode()]),
    Target(
        "cws-pkuseg-msgpack", _pkuseg("features.msgpack"), "model", seeds=lambda: [_pkuseg_files()["features.msgpack"]]
    ),
    Target("cws-pkuseg-pickle", _pkuseg("features.pkl"), "model", seeds=lambda: _pkuseg_features("pkl")),
    Target("cws-pkuseg-json", _pkuseg("features.json"), "model", seeds=lambda: _pkuseg_features("json")),
    Target("cws-pkuseg-weights", _pkuseg("weights.npz"), "model", seeds=lambda: [_pkuseg_files()["weights.npz"]]),
    Target(
        "cws-pkuseg-words",
        _pkuseg_dictionary,
        "",
        seeds=lambda: [pickle.dumps("中国\n人民", 2), pickle.dumps({"中国"}, 4)],
    ),
    Target("cws-cli", _cli, seeds=lambda: [bytes([k]) + "中国 人民 在 北京\n他 说 ： 好\n".encode() for k in range(9)]),
    Target("cws-text", _text),
    Target("cws-utf8", _utf8, seeds=lambda: [TEXT.encode(), b"\n\n", "𠮷\r\n\u2028a".encode()]),
    Target("cws-arguments", _arguments, refusals=(*REFUSALS, OverflowError)),
    Target("cws-options", _options),
]
