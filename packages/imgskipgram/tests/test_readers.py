"""What others read of ours, and what ours read of others: word2vec's forms, gensim's vectors, corpora and tools."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gensim.models import KeyedVectors, Phrases
from gensim.models.phrases import ENGLISH_CONNECTOR_WORDS
from gensim.models.word2vec import LineSentence, PathLineSentences, Text8Corpus
from gensim.similarities import WordEmbeddingSimilarityIndex
from gensim.test.utils import datapath

from imgskipgram import ImageSkipGram
from imgskipgram.compat import Word2Vec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Model = ImageSkipGram | Word2Vec

LEE = datapath("lee_background.cor")
OPTIONS: dict[str, Any] = {"vector_size": 12, "epochs": 1, "workers": 1, "seed": 3}
ODD = ["naïve", "東京", "𝄞", "a-b_c", "0", "\u200b", "<s>", "Ω\u0301", "'"]


@pytest.fixture(scope="module")
def lee() -> list[list[str]]:
    return list(LineSentence(LEE))


@pytest.fixture(scope="module")
def model(lee: list[list[str]]) -> ImageSkipGram:
    return ImageSkipGram(**OPTIONS).fit([*lee, *([ODD] * 5)])


def read_as_word2vec_does(path: Path) -> dict[str, NDArray[np.float32]]:
    """The loop of distance.c: a word ends at a blank, newlines before it do not count, then there are its numbers."""
    data = path.read_bytes()
    line, _, data = data.partition(b"\n")
    words, size = (int(number) for number in line.split())
    found = {}
    for _ in range(words):
        word, _, data = data.partition(b" ")
        found[word.replace(b"\n", b"").decode()] = np.array(struct.unpack_from(f"<{size}f", data), np.float32)
        data = data[4 * size :]
    assert not data.strip()
    return found


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("binary", [False, True])
def test_gensim_reads_the_same_bits_from_our_files(
    model: ImageSkipGram, tmp_path: Path, binary: bool, suffix: str
) -> None:
    path = tmp_path / f"vectors{suffix}"
    model.save_word2vec_format(path, binary=binary)
    back = KeyedVectors.load_word2vec_format(str(path), binary=binary)
    assert back.index_to_key == model.wv.index_to_key
    assert set(ODD) <= set(back.index_to_key)
    assert np.array_equal(back.vectors, model.wv.vectors)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_word2vecs_own_way_of_reading_finds_every_vector(lee: list[list[str]], tmp_path: Path, dtype: Any) -> None:
    model = ImageSkipGram(dtype=dtype, **OPTIONS).fit(lee[:100])
    model.save_word2vec_format(tmp_path / "vectors.bin", binary=True)
    found = read_as_word2vec_does(tmp_path / "vectors.bin")
    assert list(found) == model.wv.index_to_key
    assert np.array_equal(np.stack(list(found.values())), model.wv.vectors)


def test_a_part_of_a_file_has_the_most_frequent_words(model: ImageSkipGram, tmp_path: Path) -> None:
    model.save_word2vec_format(tmp_path / "vectors.bin", binary=True)
    part = KeyedVectors.load_word2vec_format(str(tmp_path / "vectors.bin"), binary=True, limit=20)
    counts = [model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key]
    assert part.index_to_key == model.wv.index_to_key[:20]
    assert counts == sorted(counts, reverse=True)


def made(kind: type[Model], corpus: Any, **options: Any) -> Model:
    options = {**OPTIONS, **options}
    return Word2Vec(corpus, **options) if kind is Word2Vec else ImageSkipGram(**options).fit(corpus)


def train(model: Model, corpus: list[list[str]], epochs: int) -> None:
    if isinstance(model, Word2Vec):
        model.train(corpus, total_examples=len(corpus), epochs=epochs)
    else:
        model.train(corpus, epochs=epochs)


KINDS = pytest.mark.parametrize("kind", [ImageSkipGram, Word2Vec])


@KINDS
def test_vectors_are_saved_and_loaded_by_gensim(kind: type[Model], lee: list[list[str]], tmp_path: Path) -> None:
    ours = made(kind, lee).wv
    ours.save(str(tmp_path / "vectors.kv"))
    back = KeyedVectors.load(str(tmp_path / "vectors.kv"), mmap="r")
    assert np.array_equal(back.vectors, ours.vectors)
    assert back.most_similar("government", topn=5) == ours.most_similar("government", topn=5)
    assert back.get_vecattr("government", "count") == ours.get_vecattr("government", "count") > 0


@KINDS
@pytest.mark.parametrize("lockf", [0.0, 1.0])
def test_vectors_from_a_file_are_frozen_or_trained_on(
    kind: type[Model], lee: list[list[str]], tmp_path: Path, lockf: float
) -> None:
    given = made(ImageSkipGram, lee[:150], epochs=3, seed=9)
    given.save_word2vec_format(tmp_path / "given.txt")
    model = made(kind, lee)
    model.wv.intersect_word2vec_format(str(tmp_path / "given.txt"), lockf=lockf)
    train(model, lee, 1)
    both = [word for word in model.wv.index_to_key if word in given.wv]
    same = [np.array_equal(model.wv[word], given.wv[word]) for word in both]
    assert len(both) > 500
    assert all(same) if lockf == 0 else not any(same)


@pytest.mark.parametrize("binary", [False, True])
def test_a_model_takes_vectors_from_both_forms(lee: list[list[str]], tmp_path: Path, binary: bool) -> None:
    given = made(ImageSkipGram, lee[:150], epochs=3, seed=9)
    given.save_word2vec_format(tmp_path / "given", binary=binary)
    given.save_word2vec_format(tmp_path / "given.txt")
    model, by_gensim = made(Word2Vec, lee), made(Word2Vec, lee)
    assert isinstance(model, Word2Vec)
    model.wv.vectors_lockf = np.full(1, 0.5, np.float32)
    by_gensim.wv.vectors_lockf[:] = 0.5
    model.intersect_word2vec_format(tmp_path / "given", lockf=0.25, binary=binary)
    by_gensim.wv.intersect_word2vec_format(str(tmp_path / "given.txt"), lockf=0.25)
    assert np.array_equal(model.wv.vectors, by_gensim.wv.vectors)
    assert np.array_equal(model.wv.vectors_lockf, by_gensim.wv.vectors_lockf)
    with pytest.raises(ValueError, match="fname must have vectors of 9 numbers, got 12"):
        made(Word2Vec, lee, vector_size=9).intersect_word2vec_format(tmp_path / "given", binary=binary)


def test_words_of_a_file_are_added_with_their_vectors_and_trained_on(lee: list[list[str]], tmp_path: Path) -> None:
    given = made(ImageSkipGram, lee[:150], epochs=3, seed=9)
    given.save_word2vec_format(tmp_path / "given.txt")
    model = Word2Vec(vector_size=12, min_count=1, workers=1)
    model.build_vocab(lee[200:])
    total = model.corpus_count
    model.build_vocab([list(given.wv.key_to_index)], update=True)
    model.wv.intersect_word2vec_format(str(tmp_path / "given.txt"), lockf=1.0)
    model.train(lee[200:], total_examples=total, epochs=1)
    spoken = {word for sentence in lee[200:] for word in sentence}
    unspoken = [word for word in given.wv.index_to_key if word not in spoken]
    assert unspoken
    assert all(np.array_equal(model.wv[word], given.wv[word]) for word in unspoken)
    assert not np.array_equal(model.wv["the"], given.wv["the"])


@KINDS
def test_phrases_are_words_of_a_model(kind: type[Model], lee: list[list[str]]) -> None:
    phrases = Phrases(lee, min_count=5, threshold=10, connector_words=ENGLISH_CONNECTOR_WORDS)
    model = made(kind, phrases[lee])
    found = [word for word in model.wv.index_to_key if "_" in word]
    assert "prime_minister" in (word.lower() for word in found)
    again = made(kind, [phrases[sentence] for sentence in lee])
    assert np.array_equal(model.wv.vectors, again.wv.vectors)


@KINDS
def test_a_folder_of_files_is_a_corpus(kind: type[Model], tmp_path: Path, lee: list[list[str]]) -> None:
    for name, part in (("a.txt", lee[:120]), ("b.txt", lee[120:])):
        (tmp_path / name).write_text("".join(" ".join(sentence) + "\n" for sentence in part))
    model = made(kind, PathLineSentences(tmp_path))
    assert model.wv.index_to_key == made(kind, lee).wv.index_to_key
    assert np.array_equal(model.wv.vectors, made(kind, lee).wv.vectors)


@KINDS
def test_text8_is_a_corpus(kind: type[Model], tmp_path: Path, lee: list[list[str]]) -> None:
    words = [word for sentence in lee for word in sentence]
    (tmp_path / "text8").write_text(" ".join(words))
    model = made(kind, Text8Corpus(str(tmp_path / "text8"), max_sentence_length=1000))
    assert (model.corpus_count, model.corpus_total_words) == (-(-len(words) // 1000), len(words))
    assert model.wv.index_to_key == made(kind, lee).wv.index_to_key


def test_tools_of_gensim_take_the_vectors(model: ImageSkipGram) -> None:
    index = WordEmbeddingSimilarityIndex(model.wv, threshold=0.0, exponent=1.0)
    near = dict(index.most_similar("government", topn=3))
    assert near == pytest.approx(dict(model.wv.most_similar("government", topn=3)))
    pearson, spearman, unknown = model.wv.evaluate_word_pairs(datapath("wordsim353.tsv"))
    assert -1 < pearson[0] < 1
    assert -1 < spearman[0] < 1
    assert 0 < unknown < 100
