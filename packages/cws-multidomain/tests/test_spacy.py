"""The tokenizer in spaCy's pipelines."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cws_multidomain import Segmenter, _modelfile, train
from cws_multidomain.tagger import Tagger

if TYPE_CHECKING:
    from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what spaCy's own dependencies warn of
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed (extra spacy)")
    from spacy.tokens import Doc, DocBin

TEXT = " 我们  在北京\u3000大学\r\n学习，e-mail: a@b.cn 👨\u200d👩\u200d👧。\n"
MIXED = st.text(st.sampled_from("我们在北京大学 \t\r\n\u3000😀a1，\u200b\ufeff\u0301") | st.characters(), max_size=30)


def blank(**options: Any) -> Any:
    return spacy.blank("zh", config={"nlp": {"tokenizer": {"@tokenizers": "cws.Tokenizer.v1", **options}}})


@pytest.fixture(scope="module")
def nlp() -> Any:
    return blank()


@settings(max_examples=200)
@given(MIXED.filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))
def test_the_doc_is_the_text(nlp: Any, text: str) -> None:
    doc = nlp(text)
    assert doc.text == text
    assert [token.text for token in doc if not token.is_space] == Segmenter.load().cut(text)


def test_a_space_belongs_to_the_token_before_and_other_whitespace_is_a_token(nlp: Any) -> None:
    doc = nlp(" 去  吧\n\n")
    assert [(token.text, token.whitespace_) for token in doc] == [
        (" ", ""),
        ("去", " "),
        (" ", ""),
        ("吧", ""),
        ("\n\n", ""),
    ]
    assert doc[1].idx == 1


def test_many_texts_give_the_docs_of_each(nlp: Any) -> None:
    texts = [TEXT, "", " ", *(TEXT[i:] for i in range(10))]
    expected = [[token.text for token in nlp(text)] for text in texts]
    assert [[token.text for token in doc] for doc in nlp.pipe(texts, batch_size=4)] == expected
    assert [[token.text for token in doc] for doc in nlp.tokenizer.pipe(texts, batch_size=3)] == expected


def test_user_words_and_domain_come_from_the_configuration() -> None:
    assert "在北京" in [token.text for token in blank(words={"在北京": "force"})(TEXT)]
    assert blank(domain="general").tokenizer.segmenter.domain == "general"
    with pytest.raises(ValueError, match="granularity must be 'coarse' or 'fine', got 'search'"):
        blank(granularity="search")


def test_it_survives_bytes_and_disk(tmp_path: Path) -> None:
    nlp = blank(words={"在北京": "force"}, domain="general", granularity="fine")
    expected = [token.text for token in nlp(TEXT)]
    nlp.to_disk(tmp_path / "pipeline")
    loaded = [spacy.load(tmp_path / "pipeline"), blank().from_bytes(nlp.to_bytes())]
    (tmp_path / "pipeline").rename(tmp_path / "elsewhere")
    for other in loaded:
        assert [token.text for token in other(TEXT)] == expected
        assert other.tokenizer.segmenter.domain == "general"
        assert other.tokenizer.segmenter.granularity == "fine"


def test_docs_survive_a_docbin(nlp: Any) -> None:
    bytes_ = DocBin(docs=[nlp(TEXT)]).to_bytes()
    (doc,) = DocBin().from_bytes(bytes_).get_docs(nlp.vocab)
    assert isinstance(doc, Doc)
    assert doc.text == TEXT


def test_tags_are_filled_if_asked_for(nlp: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.cws"
    corpus = [["我们", "在", "北京"], ["他们", "去", "上海"]] * 10
    tagger = Tagger.train([[("我们", "PN"), ("在", "P"), ("北京", "NR")], [("他们", "PN"), ("去", "VV")]] * 10)
    _modelfile.write(path, _modelfile.replace(train(corpus, epochs=5)._model, tagger.to_sections()))
    assert [token.tag_ for token in blank(model=str(path), tag=True)(" 我们\n在 北京")] == [
        "_SP",
        "PN",
        "_SP",
        "P",
        "NR",
    ]
    assert not any(token.tag_ for token in blank(model=str(path))(TEXT))
    plain = tmp_path / "plain.cws"
    train(corpus, epochs=1).save(plain)
    with pytest.raises(ValueError, match="tag must be False for a model without a tagger, got True"):
        blank(model=str(plain), tag=True)
