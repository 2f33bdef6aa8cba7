"""The command line, from pictures and text to pages and tables."""

from __future__ import annotations

import inspect
import io
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gensim.models import KeyedVectors
from gensim.test.utils import datapath
from scenes import features, scenes

from imgskipgram import ImageBank, ImageSkipGram, __version__, _sources, cli

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = [sys.executable, "-m", "imgskipgram"]
SCENES = scenes(400)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a bank, a model without and one with words held out."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "corpus.txt").write_text("".join(f"{scene.sentence}\n" for scene in SCENES * 10))
    pictures = [scene.draw() for scene in SCENES[:150]]
    words = [scene.words for scene in SCENES[:150]]
    ImageBank.from_features(features(pictures), words, thumbnails=pictures).save(folder / "bank.npz")
    common = ["train", str(folder / "corpus.txt"), "--images", str(folder / "bank.npz"), "--vector-size", "16"]
    common += ["--workers", "1", "-o"]
    assert cli.main([*common, str(folder / "model.npz")]) == 0
    assert cli.main([*common, str(folder / "held.npz"), "--held-out", "0.2", "--held-out-seed", "3"]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said on standard error, in one line."""
    assert cli.main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("imgskipgram: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("imgskipgram: error: ").removesuffix("\n")


def test_train_is_fit_with_the_options_that_are_given(made: Path, tmp_path: Path) -> None:
    given = ["--vector-size", "8", "--epochs", "2", "--no-shrink-windows", "--negatives", "pair", "--seed", "7"]
    given += ["--objective", "infonce", "--image-weight", "0.5", "--workers", "1", "--max-final-vocab", "12"]
    out = tmp_path / "m.safetensors"
    command = ["train", str(made / "corpus.txt"), "--images", str(made / "bank.npz"), "-o", str(out), *given]
    assert cli.main(command) == 0
    expected = ImageSkipGram(
        8,
        epochs=2,
        shrink_windows=False,
        negatives="pair",
        seed=7,
        objective="infonce",
        image_weight=0.5,
        workers=1,
        max_final_vocab=12,
    ).fit(made / "corpus.txt", ImageBank.load(made / "bank.npz"))
    found = ImageSkipGram.load(out)
    assert found.wv.index_to_key == expected.wv.index_to_key
    np.testing.assert_array_equal(found.wv.vectors, expected.wv.vectors)
    np.testing.assert_array_equal(found.image_vectors, expected.image_vectors)
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_every_option_of_a_model_is_there_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}

    class Stops(Exception):
        pass

    def model(**given: Any) -> None:
        found.update(given)
        raise Stops

    monkeypatch.setattr("imgskipgram.model.ImageSkipGram", model)
    with pytest.raises(Stops):
        cli.main(["train", "corpus.txt", "-o", "model.npz"])
    parameters = inspect.signature(ImageSkipGram).parameters
    assert parameters.keys() - found.keys() == {"callbacks", "trim_rule"}
    assert found == {name: parameters[name].default for name in found}


def test_train_says_what_it_made(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.npz"
    assert cli.main(["train", str(made / "corpus.txt"), "-o", str(out), "--vector-size", "8", "--progress"]) == 0
    said, bar = capsys.readouterr()
    assert said.startswith(f"{out}: ImageSkipGram(14 words, 8 dimensions, 5 epochs), text loss ")
    assert "100%" in bar
    assert cli.main(["train", str(made / "corpus.txt"), "-o", str(out), "--vector-size", "8"]) == 0
    assert capsys.readouterr().err == ""


def test_a_corpus_may_come_through_a_pipe(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.npz"
    command = [*COMMAND, "train", "-", "-o", str(out), "--vector-size", "8", "--workers", "1"]
    done = subprocess.run(command, input=(made / "corpus.txt").read_bytes(), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = ImageSkipGram(8, workers=1).fit(made / "corpus.txt")
    np.testing.assert_array_equal(ImageSkipGram.load(out).wv.vectors, expected.wv.vectors)


@pytest.mark.parametrize("option", ["--stream", "--held-out=0.2"])
def test_a_pipe_is_read_once(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    message = refused(capsys, "train", "-", "-o", tmp_path / "m.npz", "--images", made / "bank.npz", option)
    assert message == "CORPUS must be readable more than once with --stream and --held-out, got - (a pipe)"


def test_a_corpus_may_be_a_hugging_face_data_set(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs datasets, which imgskipgram[data] installs")
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [json.dumps({"caption": line}) for line in (made / "corpus.txt").read_text().splitlines()]
    (folder / "train.jsonl").write_text("\n".join(rows))
    expected = ImageSkipGram(8, workers=1).fit(made / "corpus.txt")
    for more in ([], ["--stream"]):
        command = ["train", f"hf:{folder}", "--text-column", "caption", "-o", str(tmp_path / "m.npz"), *more]
        assert cli.main([*command, "--vector-size", "8", "--workers", "1"]) == 0
        np.testing.assert_array_equal(ImageSkipGram.load(tmp_path / "m.npz").wv.vectors, expected.wv.vectors)


def test_without_datasets_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = refused(capsys, "train", "hf:wikitext", "-o", tmp_path / "m.npz")
    assert message == "a Hugging Face data set needs datasets: pip install 'imgskipgram[data]'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.txt", "-o", "m.npz"], "nowhere.txt"),
        (["train", datapath("lee_background.cor"), "-o", "no/m.npz"], "the folder of the output must exist, got 'no/m"),
        (
            ["train", "c.txt", "-o", os.devnull],
            f"the output must be a file that can be replaced, got {os.devnull!r}",
        ),
        (
            ["train", datapath("lee_background.cor"), "-o", "."],
            "the output must be a file that can be replaced, got '.'",
        ),
        (["train", "c.txt", "-o", "m.npz", "--window", "0"], "window must be a positive integer, got 0"),
        (["train", "c.txt", "-o", "m.npz", "--images", "b.npz"], "b.npz"),
        (
            ["train", "c.txt", "-o", "m.npz", "--held-out", ".2"],
            "--held-out needs --images, of which labels are hidden",
        ),
        (["explain", "c.txt", "red"], "c.txt"),
        (["export", "c.txt", "no/out"], "the folder of the output must exist, got 'no/out'"),
        (
            ["bank", "nowhere", "--backbone", "resnet18", "-o", "b.npz"],
            "path must be a folder of pictures, got 'nowhere'",
        ),
    ],
    ids=["corpus", "folder", "device", "output", "option", "bank", "held", "model", "export", "pictures"],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train", "c.txt"],
        ["train", "c.txt", "-o", "m.npz", "--window", "five"],
        ["train", "c.txt", "-o", "m.npz", "--objective", "ncee"],
        ["train", "c.txt", "-o", "m.npz", "--stream", "--cache-dir", "."],
        ["explain", "m.npz"],
        ["evaluate", "m.npz"],
        ["export", "m.npz", "v.txt", "--format", "glove"],
        ["bank", "photos", "-o", "b.npz"],
    ],
    ids=["nothing", "command", "output", "number", "choice", "both", "word", "measure", "format", "backbone"],
)
def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2
    assert "usage: imgskipgram" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "bank", "train", "explain", "evaluate", "export"])
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main([*command.split(), "--help"])
    assert exit.value.code == 0
    assert ("Example: imgskipgram" if command else "--help") in capsys.readouterr().out


def test_explain_lists_pictures_and_the_way_to_them(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ImageSkipGram.load(made / "model.npz")
    options = ["--topn", "4", "--no-csls", "--diversity", "0.3"]
    assert cli.main(["explain", str(made / "model.npz"), "red", "star", *options]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    assert len(blocks) == 2
    for word, block in zip(("red", "star"), blocks, strict=True):
        expected = model.explain(word, 4, csls=False, diversity=0.3)
        title, *rows = block.splitlines()
        assert title == word
        assert [row.split()[2] for row in rows[:4]] == [name for _, name, _ in expected.images]
        assert [row.split()[2] for row in rows[4:]] == [step for step, _, _ in expected.path]


def test_explain_writes_one_page_or_a_folder_of_them(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", str(made / "model.npz"), "red", "--html", str(tmp_path / "red.html")]) == 0
    page = (tmp_path / "red.html").read_text()
    assert page.startswith("<!")
    assert "data:image/" in page
    assert cli.main(["explain", str(made / "model.npz"), "red", "star", "--html", str(tmp_path / "pages")]) == 0
    assert sorted(os.listdir(tmp_path / "pages")) == ["red.html", "star.html"]
    assert (tmp_path / "pages/red.html").read_text() == page
    pages = ("red.html", "pages/red.html", "pages/star.html")
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in pages]


def test_an_unknown_word_among_several_leaves_no_page(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "explain", made / "model.npz", "red", "squire", "--html", tmp_path / "pages")
    assert message == "word must be in the vocabulary, got 'squire'; close spellings: square"
    assert not (tmp_path / "pages").exists()


def test_a_page_of_a_word_that_is_no_name_of_a_file_stays_in_its_folder(tmp_path: Path) -> None:
    text = [["../up", "a/b", "dog"]] * 9
    bank = ImageBank.from_features(np.eye(3), ["dog", "../up", "a/b"])
    model = ImageSkipGram(4, min_count=1, objective="none", workers=1).fit(text, bank)
    model.save(tmp_path / "m.npz")
    assert cli.main(["explain", str(tmp_path / "m.npz"), "../up", "a/b", "--html", str(tmp_path / "pages")]) == 0
    assert sorted(os.listdir(tmp_path)) == ["m.npz", "pages"]
    assert sorted(os.listdir(tmp_path / "pages")) == ["..%2Fup.html", "a%2Fb.html"]


def test_evaluate_measures_what_is_asked(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from imgskipgram import evaluate

    pairs, questions = tmp_path / "pairs.txt", tmp_path / "questions.txt"
    pairs.write_text("red green 8\nred star 2\nstar circle 7\nabove below 9\nred absent 1\n")
    questions.write_text(": colours\nred green star circle\nred star blue nowhere\n")
    command = ["evaluate", str(made / "held.npz"), "--similarity", str(pairs), "--analogy", str(questions)]
    assert cli.main([*command, "--grounding", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = ImageSkipGram.load(made / "held.npz")
    assert found["similarity"][str(pairs)] == evaluate.similarity(model.wv, pairs)._asdict()
    assert found["analogy"][str(questions)]["n"] == 1
    hidden = {word for labels in model.bank.hidden for word in labels}
    expected = evaluate.grounding(model, hidden)
    assert found["grounding"]["words"] == expected.words == 2
    assert found["grounding"]["model"]["hit_10"] == expected.model.hit_10
    assert found["grounding"]["permuted"]["median_rank"] == expected.permuted.median_rank
    assert cli.main([*command, "--grounding"]) == 0
    text = capsys.readouterr().out
    for part in (evaluate.similarity(model.wv, pairs), evaluate.analogy(model.wv, questions), expected):
        assert str(part) in text


def test_grounding_needs_words_that_were_held_out(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "evaluate", made / "model.npz", "--grounding")
    assert message == f"{made / 'model.npz'} must be trained with --held-out for --grounding, but saw all labels"


@pytest.mark.parametrize("kind", ["word2vec", "word2vec-bin"])
def test_export_is_read_by_gensim(made: Path, tmp_path: Path, kind: str) -> None:
    assert cli.main(["export", str(made / "model.npz"), str(tmp_path / "v"), "--format", kind]) == 0
    wv = KeyedVectors.load_word2vec_format(tmp_path / "v", binary=kind == "word2vec-bin")
    expected = ImageSkipGram.load(made / "model.npz").wv
    assert wv.index_to_key == expected.index_to_key
    np.testing.assert_allclose(wv.vectors, expected.vectors, rtol=1e-6)


def test_export_gives_plain_arrays(made: Path, tmp_path: Path) -> None:
    assert cli.main(["export", str(made / "model.npz"), str(tmp_path / "v.npz"), "--format", "npz"]) == 0
    model = ImageSkipGram.load(made / "model.npz")
    with np.load(tmp_path / "v.npz", allow_pickle=False) as arrays:
        assert arrays["words"].tolist() == model.wv.index_to_key
        assert arrays["image_ids"].tolist() == list(model.bank.ids)
        np.testing.assert_array_equal(arrays["vectors"], model.wv.vectors)
        np.testing.assert_array_equal(arrays["image_vectors"], model.image_vectors)
        assert arrays["mu"].shape == (16,)


def test_bank_is_from_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, scene in enumerate(SCENES[:4]):
        (tmp_path / "pictures" / scene.first[0]).mkdir(parents=True, exist_ok=True)
        scene.draw().save(tmp_path / "pictures" / scene.first[0] / f"{i}.png")
    (tmp_path / "pictures/red/broken.png").parent.mkdir(exist_ok=True)
    (tmp_path / "pictures/red/broken.png").write_bytes(b"none")
    named: list[str] = []

    def network(name: str) -> Any:
        named.append(name)
        return features

    monkeypatch.setattr(_sources, "features", network)
    command = ["bank", tmp_path / "pictures", "--backbone", "resnet18", "-o", tmp_path / "b.npz"]
    assert "broken.png" in refused(capsys, *command)
    assert not (tmp_path / "b.npz").exists()
    assert cli.main([*map(str, command), "--on-error", "skip"]) == 0
    bank = ImageBank.load(tmp_path / "b.npz")
    assert {word for labels in bank.words for word in labels} == {scene.first[0] for scene in SCENES[:4]}
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'b.npz'}: 4 images, 4 labelled, ")
    assert named == ["resnet18", "resnet18"]


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ImageBank.from_features(np.eye(8), ["red"] * 8).save(tmp_path / "b.npz")
    command = ["train", str(made / "corpus.txt"), "--images", str(tmp_path / "b.npz"), "-o", str(tmp_path / "m.npz")]
    assert cli.main(command) == 0
    assert capsys.readouterr().err.startswith("imgskipgram: warning: all images show 'red'")


def test_what_cannot_be_written_leaves_the_old_file(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "m.npz"
    old.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left" in refused(capsys, "train", made / "corpus.txt", "-o", old, "--vector-size", "4")
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == ["m.npz"]


def test_control_c_ends_a_training_with_130_and_no_file(made: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "train", str(made / "corpus.txt"), "-o", str(tmp_path / "m.npz"), "--progress"]
    with subprocess.Popen([*command, "--epochs", "60000"], stderr=subprocess.PIPE) as process:
        assert isinstance(process.stderr, io.BufferedReader)
        assert process.stderr.read(1)  # of the bar
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(120) == 130
    assert b"Traceback" not in rest
    assert os.listdir(tmp_path) == []


def test_the_module_reports_versions_and_is_the_command() -> None:
    report = subprocess.run(COMMAND, capture_output=True, text=True, timeout=300)
    assert report.stdout.splitlines()[0].split() == ["imgskipgram", __version__]
    assert "cpu     C++" in report.stdout
    version = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, timeout=300)
    assert version.stdout == f"imgskipgram {__version__}\n"


def test_a_reader_that_goes_away_is_no_error(made: Path) -> None:
    command = [*COMMAND, "explain", str(made / "model.npz"), "red"]
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(300) == 141
