"""Against the packages whose interfaces and results we promise."""

from __future__ import annotations

import importlib
import itertools
import pickle
import random
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from cws_multidomain import Tagger, _pkuseg, read_corpus
from cws_multidomain._core import pkuseg_load, pkuseg_viterbi, tagger_keys
from cws_multidomain._treebanks import read_gsd
from cws_multidomain.compat.jieba import Tokenizer
from cws_multidomain.compat.pkuseg import pkuseg as CompatSegmenter

if TYPE_CHECKING:
    from types import ModuleType

DATA = Path(__file__).parents[4] / "shared" / "data" / "cws"


def peer(name: str) -> ModuleType:
    """A module of another package, or a skip; what it warns of when it is imported is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name.partition(".")[0], reason=f"{name.partition('.')[0]} is not installed (group peers)")
        return importlib.import_module(name)


# jieba


@pytest.fixture(scope="module")
def jieba() -> ModuleType:
    module = peer("jieba")
    module.setLogLevel(60)
    module.initialize()
    return module


@pytest.fixture(scope="module")
def jieba_dictionary(jieba: ModuleType) -> Path:
    return Path(str(jieba.__file__)).with_name("dict.txt")


@pytest.fixture(scope="module")
def jieba_texts(jieba: ModuleType) -> list[str]:
    """Dictionary words, their parts, and signs that no newspaper has."""
    chance = random.Random(0)
    words = [word for word in jieba.dt.FREQ if jieba.dt.FREQ[word]]
    odd = [word for word in words if not "\u4e00" <= word[0] <= "\u9fd5" or not "\u4e00" <= word[-1] <= "\u9fd5"]
    signs = "abZ09+#&._%-０ａ，。！ \t\r\n\x0b\x1c\x85\xa0\u2028\u3000\u200b\ufeff\ud800é😀𠀀㐀\u9fd5\u9fd6鿿後"
    texts = ["", " ", "\r\n", "\n\r", "a", "5g", "Tom/Amy", "B超", "c++", "C++和c#，AT&T", "\ufeff北京"]
    for _ in range(6000):
        kinds = chance.choices([words, odd, signs, ["\r\n", "3.14", "100%", "foo-bar_9"]], [6, 2, 4, 1], k=12)
        parts = [chance.choice(kind) for kind in kinds]
        texts.append("".join(part[: chance.randint(1, 4)] if chance.random() < 0.3 else part for part in parts))
    return texts


def same(ours: Any, theirs: Any, texts: list[str], **options: Any) -> None:
    for text in texts:
        assert list(ours(text, **options)) == list(theirs(text, **options))


def same_in_all_modes(ours: Any, theirs: Any, texts: list[str]) -> None:
    same(ours.cut, theirs.cut, texts, HMM=False)
    same(ours.cut, theirs.cut, texts, cut_all=True)
    same(ours.cut_for_search, theirs.cut_for_search, texts, HMM=False)
    same(ours.tokenize, theirs.tokenize, texts, HMM=False)
    same(ours.tokenize, theirs.tokenize, texts, mode="search", HMM=False)


def test_jieba_on_its_dictionary_and_noise(jieba: ModuleType, jieba_dictionary: Path, jieba_texts: list[str]) -> None:
    same_in_all_modes(Tokenizer(jieba_dictionary), jieba.dt, jieba_texts)


@pytest.mark.parametrize("name", ["msr", "pku"])
def test_jieba_on_the_second_bakeoff(jieba: ModuleType, jieba_dictionary: Path, name: str) -> None:
    path = DATA / "icwb2" / f"{name}_test.utf8"
    if not path.exists():
        pytest.skip(f"{path.name} of the second SIGHAN bakeoff is not in shared/data/cws/icwb2")
    lines = path.read_text(encoding="utf-8").splitlines()
    ours = Tokenizer(jieba_dictionary)
    same(ours.cut, jieba.dt.cut, lines, HMM=False)
    same(ours.cut, jieba.dt.cut, lines, cut_all=True)
    same(ours.tokenize, jieba.dt.tokenize, lines[::4], mode="search", HMM=False)


def test_jieba_with_user_words(jieba: ModuleType, jieba_dictionary: Path, jieba_texts: list[str]) -> None:
    chance = random.Random(1)
    ours, theirs = Tokenizer(jieba_dictionary), jieba.Tokenizer()
    for text in jieba_texts[-600:]:
        at = chance.randrange(len(text))
        word = text[at : at + chance.randint(1, 9)]
        for segment in (word, [word[: len(word) // 2], word[len(word) // 2 :]]):
            tune = chance.random() < 0.3
            assert ours.suggest_freq(segment, tune) == theirs.suggest_freq(segment, tune)
        freq = chance.choice([None, None, 0, 1, "20", 10**7])
        ours.add_word(word, freq)
        theirs.add_word(word, freq)
        assert ours.get_FREQ(word) == theirs.FREQ[word]
        same(ours.cut, theirs.cut, [text], HMM=False)
    user = ["云计算 5", "凱特琳 nz", "Edu Trust认证 2000", "创新办 3 i", "a b 3 4", "大 数据 x"]
    ours.load_userdict(user)
    theirs.load_userdict(user)
    assert ours.user_word_tag_tab == theirs.user_word_tag_tab
    same_in_all_modes(ours, theirs, [*(line.replace(" ", "") for line in user), *jieba_texts[-1000:]])


def test_the_shipped_dictionary_is_that_of_jieba(jieba: ModuleType, jieba_texts: list[str]) -> None:
    ours = Tokenizer()
    assert all(ours.get_FREQ(word) == count for word, count in jieba.dt.FREQ.items())
    assert ours._dictionary().total == jieba.dt.total
    same_in_all_modes(ours, jieba.dt, jieba_texts[:500])


def test_rjieba_agrees(jieba_dictionary: Path, jieba_texts: list[str]) -> None:
    rjieba = peer("rjieba")
    han = ["".join(filter(lambda c: "\u4e00" <= c <= "\u9fd5", text)) for text in jieba_texts]
    same(Tokenizer(jieba_dictionary).lcut, lambda text, HMM: rjieba.cut(text, HMM), han, HMM=False)


# spacy-pkuseg


@pytest.fixture(scope="module")
def pkuseg() -> ModuleType:
    return peer("spacy_pkuseg")


def made_sentences(count: int, seed: int) -> list[list[str]]:
    """Words of a small vocabulary whose parts are words too, with all that pkuseg puts into classes."""
    chance = random.Random(seed)
    signs = "-._,|/*:几二三四五六七八九十千万亿兆零１０％ＡＺａｉｊｋｚ／・－一百0189AZaz，。&é😀𠀀"
    parts = [chr(0x4E00 + k) for k in range(0, 900, 15)] + list(signs)
    vocabulary = ["".join(chance.choices(parts, k=chance.choice([1, 1, 2, 2, 2, 3, 4, 6, 7, 11]))) for _ in range(400)]
    return [chance.choices(vocabulary, k=chance.randint(1, 25)) for _ in range(count)]


def zhuxian(part: str) -> list[list[str]]:
    path = DATA / "zhuxian" / f"{part}.zhuxian.wordpos"
    if not path.exists():
        pytest.skip("the Zhuxian corpus is not in shared/data/cws/zhuxian")
    lines = path.read_text("utf-8").splitlines()
    return [[token.rpartition("_")[0] for token in line.split()] for line in lines if line.strip()]


class Trained(NamedTuple):
    """A model of spacy-pkuseg, what it was trained on, and how."""

    directory: Path
    text: str
    orders: list[list[int]]
    objective: list[float]


def train_peer(
    pkuseg: ModuleType, sentences: list[list[str]], where: Path, epochs: int = 3, init: Path | None = None
) -> Trained:
    """Trains the peer, noting its order of sentences and its objective."""
    optimizer, text = pkuseg.trainer.ADF, _pkuseg.corpus_text(sentences)
    orders: list[list[int]] = []
    objective: list[float] = []
    shuffle, optimize = random.shuffle, optimizer.optimize

    def noted_shuffle(order: list[int]) -> None:
        shuffle(order)
        orders.append(list(order))

    def noted_optimize(self: Any) -> Any:
        report = optimize(self)
        objective.append(float(report[0]))
        return report

    where.mkdir()
    (where / "train.txt").write_text(text, "utf-8")
    (where / "test.txt").write_text("\n".join(text.split("\n")[:9]), "utf-8")
    random.seed(17)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "shuffle", noted_shuffle)
        patch.setattr(optimizer, "optimize", noted_optimize)
        pkuseg.train(str(where / "train.txt"), str(where / "test.txt"), str(where), epochs, init and str(init))
    return Trained(where, text, orders, objective)


@pytest.fixture(scope="module", params=["made", "zhuxian"])
def trained(request: pytest.FixtureRequest, pkuseg: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    sentences = made_sentences(120, 0) if request.param == "made" else zhuxian("train")[:250]
    return train_peer(pkuseg, sentences, tmp_path_factory.mktemp("peer") / request.param)


def pkuseg_texts(trained: Trained) -> list[str]:
    """Sentences, noise of their characters, and the edges of what a text can be."""
    chance = random.Random(3)
    lines = [line.replace(" ", "") for line in trained.text.split("\n")]
    pool = sorted(set("".join(lines))) + list("０ｊ・／－％.-*/\u200b\ufeff\x00\ud800\udfff🇨🇳👩\u3042")
    noise = ["".join(chance.choices(pool, k=chance.choice([1, 2, 3, 7, 40, 64, 65, 300]))) for _ in range(300)]
    spaced = ["\u3000" + line[:9] + " \t" + line[9:] + "\r\n" for line in lines[:60]]
    return ["", " \n", "\x1c\x85", "电动车在上海", "".join(lines), *lines, *noise, *spaced]


def test_pkuseg_training_has_the_peers_features_objective_and_weights(trained: Trained) -> None:
    model = _pkuseg.train(trained.text, epochs=len(trained.orders), orders=trained.orders)
    weights = np.load(trained.directory / "weights.npz")
    assert model.files.features == (trained.directory / "features.msgpack").read_bytes()
    assert (model.n_tags, model.n_features) == tuple(weights["sizes"])
    np.testing.assert_allclose(model.objective, trained.objective, rtol=1e-12)
    np.testing.assert_allclose(model.weights, weights["w"], rtol=0, atol=1e-11)
    seeded = _pkuseg.train(trained.text, epochs=len(trained.orders), seed=17)
    assert seeded.weights.tobytes() == model.weights.tobytes()


def test_pkuseg_training_goes_on_as_the_peers(trained: Trained, pkuseg: ModuleType, tmp_path: Path) -> None:
    more = [*made_sentences(40, 5), *(line.split() for line in trained.text.split("\n")[::5])]
    again = train_peer(pkuseg, more, tmp_path / "more", 2, trained.directory)
    model = _pkuseg.train(again.text, epochs=2, orders=again.orders, init=_pkuseg.Model.load(trained.directory))
    loaded, theirs = (
        pkuseg_load(data, "msgpack")
        for data in (model.files.features, (again.directory / "features.msgpack").read_bytes())
    )
    assert loaded == theirs
    np.testing.assert_allclose(model.objective, again.objective, rtol=1e-12)
    np.testing.assert_allclose(model.weights, np.load(again.directory / "weights.npz")["w"], rtol=0, atol=1e-11)


def test_pkuseg_scores_are_the_peers_bit_for_bit(trained: Trained, pkuseg: ModuleType) -> None:
    ours, theirs = _pkuseg.Model.load(trained.directory), pkuseg.pkuseg(str(trained.directory), user_dict=None)
    inference, extractor = pkuseg._inf, theirs.feature_extractor
    for text in pkuseg_texts(trained):
        for piece in text.split():
            nodes = list(extractor.normalize_text(piece))
            ids = [extractor.get_node_features_idx(i, nodes) for i in range(len(nodes))]
            scores, _ = inference.getLogYY(ids, 5, ours.n_features * 5, theirs.model.w, 1.0)
            assert np.array_equal(ours.core.scores(piece), scores)


@pytest.mark.parametrize("kind", ["none", "default", "words", "pairs", "file"])
def test_pkuseg_cuts_as_the_peer(trained: Trained, pkuseg: ModuleType, kind: str, tmp_path: Path) -> None:
    default = Path(str(pkuseg.__file__)).parent / "dicts" / "default.pkl"
    chance = random.Random(4)
    line = trained.text.replace(" ", "").replace("\n", "")
    starts = [chance.randrange(len(line) - 9) for _ in range(500)]
    words = [line[start : start + chance.choice([1, 2, 2, 3, 4, 8])] for start in starts] + ["车", "车在中国"]
    (tmp_path / "words.txt").write_text("".join(f" {word}\tn\r\n" for word in words), "utf-8")
    user = {"none": None, "default": "default", "words": words, "pairs": [(word, "n") for word in words]}
    given = user.get(kind, str(tmp_path / "words.txt"))
    theirs = pkuseg.pkuseg(str(trained.directory), user_dict=given)
    ours = CompatSegmenter(trained.directory, given, merge=[default])
    texts = pkuseg_texts(trained)
    assert [ours.cut(text) for text in texts] == [theirs.cut(text) for text in texts]


@pytest.mark.parametrize("name", ["msr", "pku", "cityu"])
def test_pkuseg_cuts_the_second_bakeoff_as_the_peer(pkuseg: ModuleType, trained: Trained, name: str) -> None:
    path = DATA / "icwb2" / f"{name}_test.utf8"
    if not path.exists():
        pytest.skip(f"{path.name} of the second SIGHAN bakeoff is not in shared/data/cws/icwb2")
    default = Path(str(pkuseg.__file__)).parent / "dicts" / "default.pkl"
    lines = path.read_text("utf-8").splitlines()[::10]
    for user in (None, "default"):
        theirs, ours = (
            pkuseg.pkuseg(str(trained.directory), user_dict=user),
            CompatSegmenter(trained.directory, user, merge=[default]),
        )
        assert [ours.cut(line) for line in lines] == [theirs.cut(line) for line in lines]


def test_pkuseg_models_that_we_write_are_loaded_by_the_peer(pkuseg: ModuleType, tmp_path: Path) -> None:
    text = _pkuseg.corpus_text(made_sentences(80, 6))
    for reference in (True, False):
        ours = _pkuseg.train(text, epochs=2, reference=reference)
        ours.save(tmp_path)
        theirs = pkuseg.pkuseg(str(tmp_path), user_dict=None)
        lines = [line.replace(" ", "") for line in text.split("\n")]
        assert [ours.cut(line) for line in lines] == [theirs.cut(line) for line in lines]


def test_pkuseg_viterbi_is_the_peers(pkuseg: ModuleType) -> None:
    chance = np.random.default_rng(0)
    for tags in (2, 3, 5, 8, 41):
        for n in (1, 2, 7, 60):
            for _ in range(10):
                exact = chance.standard_normal((n, tags)), chance.standard_normal((tags, tags))
                ties = (
                    chance.integers(-1, 2, (n, tags)).astype(float),
                    chance.integers(-1, 2, (tags, tags)).astype(float),
                )
                for nodes, edges in (exact, ties):
                    expected = pkuseg._inf.run_viterbi(nodes, edges)[1]
                    assert np.array_equal(pkuseg_viterbi(nodes, edges), expected)


def test_pkuseg_tags_words_as_the_peer(pkuseg: ModuleType, trained: Trained, tmp_path: Path) -> None:
    chance = random.Random(7)
    sentences = [line.split() for line in trained.text.split("\n")]
    features = {"$$"} | {"tr1.w-1.BOS", "tr1.w1.EOS", "tr1.w-2.BOS", "tr1.w_-1_0.BOS", "tr1.w_0_1.EOS", "w.**Num"}
    extractor = pkuseg.Postag.__init__.__globals__["FeatureExtractor"]()
    for words in sentences[:100]:
        nodes = list(extractor.normalize_text(list(words)))
        for i in range(len(nodes)):
            features.update(extractor.get_node_features(i, nodes))
    index = {name: k for k, name in enumerate(["$$", *sorted(features - {"$$", "/"})])}
    tags = {f"t{k}": k for k in range(39)}
    (tmp_path / "features.pkl").write_bytes(pickle.dumps({"feature_to_idx": index, "tag_to_idx": tags}))
    w = np.random.default_rng(8).standard_normal(39 * (len(index) + 39))
    np.savez(tmp_path / "weights.npz", sizes=np.array([39, len(index)]), w=w)
    ours, theirs = _pkuseg.Tagger(tmp_path), pkuseg.Postag(str(tmp_path))
    odd = [["３", "0.5", "", "十二", "a-b", "*"], ["x"], *(chance.sample(words, len(words)) for words in sentences)]
    assert [ours.tag(list(words)) for words in odd] == [theirs.tag(list(words)) for words in odd]
    segmenter = CompatSegmenter(trained.directory, [("车", "own"), ("在", "")], tmp_path, merge=[])
    words, parts = zip(*segmenter.cut("电动车在上海"), strict=True)
    expected = theirs.tag(list(words))
    assert list(parts) == ["own" if word.startswith("车") else tag for word, tag in zip(words, expected, strict=True)]


# python-crfsuite


def crf_features(sentences: list[list[str]]) -> list[list[list[str]]]:
    """The features of our tagger as names."""
    keys, counts = tagger_keys(sentences, np.zeros(0, np.uint32), np.zeros(0, np.uint32))
    names, sizes = map(str, keys.tolist()), iter(counts.tolist())
    return [[list(itertools.islice(names, next(sizes))) for _ in sentence] for sentence in sentences]


@pytest.mark.parametrize("n", [300, 1200])
def test_the_tagger_is_as_accurate_as_crfsuite_with_the_same_features(n: int, tmp_path: Path) -> None:
    # crfsuite leaves no rare feature out, so that neither may we
    crfsuite = peer("pycrfsuite")
    if not DATA.is_dir():
        pytest.skip("the treebanks of shared/data are not here")
    train = read_gsd(DATA / "ud" / "udc_train.conll.xz")[:n]
    dev = read_corpus(DATA / "ud" / "GSDSimp_zh_gsdsimp-ud-dev.conllu.xz")
    trainer = crfsuite.Trainer(verbose=False)
    for features, sentence in zip(crf_features([list(s) for s in train]), train, strict=True):
        trainer.append(features, list(sentence.xpos or ()))
    trainer.set_params({"c1": 0.1, "c2": 0.1, "max_iterations": 60})
    trainer.train(str(tmp_path / "model"))
    theirs = crfsuite.Tagger()
    theirs.open(str(tmp_path / "model"))
    found = [theirs.tag(features) for features in crf_features([list(s) for s in dev])]
    pairs = [pair for tags, s in zip(found, dev, strict=True) for pair in zip(tags, s.xpos or (), strict=True)]
    accuracy = sum(a == b for a, b in pairs) / len(pairs)
    assert Tagger.train(train, minimum=1).evaluate(dev).xpos >= accuracy - 0.001
