"""The command line, run as a process."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

from cws_multidomain import Segmenter, __version__

if TYPE_CHECKING:
    from pathlib import Path

CWS = [sys.executable, "-m", "cws_multidomain.cli"]
TEXT = '我们在北京大学学习。\n\n  去\t吧 "你\\好"\r\n👨\u200d👩\u200d👧 emoji\u3000最后一行\n'


def cws(*arguments: str | Path, given: str | bytes = b"", code: int = 0) -> str:
    data = given.encode() if isinstance(given, str) else given
    done = subprocess.run([*CWS, *map(str, arguments)], input=data, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr.decode()
    return (done.stderr if code else done.stdout).decode()


def lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")


@pytest.mark.parametrize("threads", ["1", "3"])
def test_text_comes_out_as_lines_of_tokens(threads: str) -> None:
    segmenter = Segmenter.load()
    expected = [" ".join(segmenter.cut(line)) for line in lines(TEXT)]
    assert lines(cws("cut", "--threads", threads, given=TEXT)) == expected
    assert cws("cut", given="") == ""
    assert cws("cut", given="\n\n") == "\n\n"


@pytest.mark.parametrize(
    ("unit", "encoding", "size"), [("char", "utf-32-le", 4), ("byte", "utf-8", 1), ("utf16", "utf-16-le", 2)]
)
def test_the_other_formats_hold_offsets_into_the_line(unit: str, encoding: str, size: int) -> None:
    segmenter = Segmenter.load()
    rows = [json.loads(row) for row in lines(cws("cut", "--format", "jsonl", "--unit", unit, given=TEXT))]
    offsets = lines(cws("cut", "--format", "offsets", "--unit", unit, given=TEXT))
    tsv = cws("cut", "--format", "tsv", "--unit", unit, given=TEXT).removesuffix("\n\n").split("\n\n")
    assert len(rows) == len(offsets) == len(lines(TEXT))
    for line, row, pairs in zip(lines(TEXT), rows, offsets, strict=True):
        assert row["tokens"] == segmenter.cut(line)
        encoded = line.encode(encoding)
        pieces = [encoded[size * start : size * end].decode(encoding) for start, end in row["offsets"]]
        assert pieces == row["tokens"]
        assert pairs == " ".join(f"{start}:{end}" for start, end in row["offsets"])
    table = [
        [token, *map(str, place)] for row in rows for token, place in zip(row["tokens"], row["offsets"], strict=True)
    ]
    assert [cell.split("\t") for block in tsv for cell in block.split("\n") if cell] == table


def test_long_files_come_out_in_order(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    rows = [f"第{i}行我们在北京大学学习" for i in range(120_000)] + ["没有结尾" * 400_000]
    path.write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "out.txt"
    cws("cut", path, "--output", out, "--threads", "2")
    found = lines(out.read_text(encoding="utf-8"))
    assert [row.replace(" ", "") for row in found] == rows
    assert sorted(os.listdir(tmp_path)) == ["long.txt", "out.txt"]


def test_several_files_and_standard_input_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "他来了".encode())
    once = cws("cut", path)
    assert cws("cut", path, "-", path, given="你好\n") == once + cws("cut", given="你好") + once
    assert "\ufeff" not in once


def test_options_reach_the_segmenter(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("在北京大\n", encoding="utf-8")
    assert "在北京大" in cws("cut", "--words", path, "--cost", "-100", given=TEXT).split()
    assert "在北京大" in cws("cut", "--words", path, "--cost", "force", given=TEXT).split()
    assert "invalid _cost value: 'much'" in cws("cut", "--words", path, "--cost", "much", code=2)
    segmenter = Segmenter.load()
    segmenter.granularity = "search"
    assert cws("cut", "--granularity", "search", given="北京大学") == " ".join(segmenter.cut("北京大学")) + "\n"
    assert cws("cut", "--domain", "general", given="北京大学")
    assert "domain" in cws("cut", "--domain", "nowhere", given="", code=1)
    assert "--domain must be a name or name=weight,..., got 'a=b'" in cws("cut", "--domain", "a=b", code=1)
    assert "must be at least 1, got 0" in cws("cut", "--threads", "0", code=2)


def test_invalid_utf8_is_named_by_file_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    start = "你好\n".encode() * 300_000
    path.write_bytes(start + "他".encode() + b"\xff" + "来\n".encode())
    out = tmp_path / "out.txt"
    message = cws("cut", path, "--output", out, code=1)
    assert message == (
        f"cws: error: {path} must be UTF-8, got the byte 0xff at byte {len(start) + 3}; --errors replace reads on\n"
    )
    assert os.listdir(tmp_path) == ["bad.txt"]
    replaced = cws("cut", path, "--errors", "replace")
    assert replaced.replace(" ", "").endswith("他\ufffd来\n")


def test_nothing_is_left_under_the_name_of_an_output_that_failed(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    out.write_text("before")
    assert "nowhere.txt" in cws("cut", "nowhere.txt", "--output", out, code=1)
    assert out.read_text() == "before"
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_broken_pipe_ends_with_141(tmp_path: Path, threads: str) -> None:
    path = tmp_path / "long.txt"
    path.write_text("我们在北京大学学习\n" * 300_000, encoding="utf-8")
    with subprocess.Popen(
        [*CWS, "cut", path, "--threads", threads], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_lines_are_answered_as_they_come_and_ctrl_c_ends_with_130(threads: str) -> None:
    with subprocess.Popen(
        [*CWS, "cut", "--threads", threads], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        for text in ("他来了\n", "你好\n"):
            process.stdin.write(text.encode())
            process.stdin.flush()
            assert process.stdout.readline().decode().replace(" ", "") == text
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b""


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    peaks = []
    for copies in (100_000, 800_000):
        path = tmp_path / "long.txt"
        path.write_text("我们在北京大学学习\n" * copies, encoding="utf-8")
        code = (
            "import resource, sys; from cws_multidomain.cli import main; "
            "main(['cut', sys.argv[1], '--threads', '2']); "
            "sys.stderr.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"
        )
        done = subprocess.run([sys.executable, "-c", code, path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        peaks.append(int(done.stderr))
    assert peaks[1] < peaks[0] + 16_000, "in KB; the second file is 19 MB longer"


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("我们在北京大学学习\n" * 700_000, encoding="utf-8")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with subprocess.Popen([*CWS, "cut", path], stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        process.wait(60)
    os.close(ours)
    assert b"100%" in shown
    done = subprocess.run([*CWS, "cut", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)
    assert done.stderr == b""


def test_parts_of_speech_stand_behind_the_tokens(tmp_path: Path) -> None:
    corpus, model, text = tmp_path / "train.txt", tmp_path / "own.cws", "我们在北京大学学习。"
    corpus.write_text("我们_PN 在_P 北京_NR 大学_NN 学习_VV 。_PU\n他们_PN 去_VV 上海_NR\n" * 10, encoding="utf-8")
    cws("train", corpus, "--pos", corpus, "--epochs", "5", "--output", model)
    assert cws("pos", "--model", model, given=text) == "我们_PN 在_P 北京_NR 大学_NN 学习_VV 。_PU\n"
    row = json.loads(cws("pos", "--model", model, "--format", "jsonl", "--unit", "byte", given=text))
    assert row["pos"] == ["PN", "P", "NR", "NN", "VV", "PU"]
    assert row["offsets"][-1][1] == len(text.encode())
    table = cws("pos", "--model", model, "--format", "tsv", "--unit", "utf16", given="😀\n他们去")
    assert table.endswith("\n\n他们\t0\t2\tPN\n去\t2\t3\tVV\n\n")
    assert table.startswith("😀\t0\t2\t")
    plain = tmp_path / "plain.cws"
    cws("train", corpus, "--epochs", "1", "--output", plain)
    assert "--model must have a tagger" in cws("pos", "--model", plain, given=text, code=1)


def test_a_model_is_trained_and_scored(tmp_path: Path) -> None:
    corpus = tmp_path / "train.txt"
    corpus.write_text("我们 在 北京 大学 学习 。\n他们 去 上海 工作 。\n" * 10, encoding="utf-8")
    model = tmp_path / "own.cws"
    cws("train", corpus, "--epochs", "5", "--seed", "1", "--output", model)
    assert cws("cut", "--model", model, given="我们在北京大学学习。") == "我们 在 北京 大学 学习 。\n"
    assert "F1 1.0000" in cws("evaluate", corpus, "--model", model)
    cut = tmp_path / "cut.txt"
    cut.write_text(corpus.read_text(encoding="utf-8").replace("北京 大学", "北京大学"), encoding="utf-8")
    scores = json.loads(cws("evaluate", corpus, cut, "--format", "json"))
    assert (scores["gold"], scores["predicted"]) == (110, 100)
    assert json.loads(cws("model", "info", model))
    assert cws("model", "verify", model) == f"{model}: complete and unchanged\n"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    assert str(model) in cws("model", "verify", model, code=1)


def test_domains_are_named_before_their_files(tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("我们 在 北京\n" * 12, encoding="utf-8")
    b.write_text("我 们 在 北 京\n" * 12, encoding="utf-8")
    model = tmp_path / "own.cws"
    cws("train", f"a={a}", f"b={b}", "--epochs", "8", "--output", model)
    assert cws("cut", "--model", model, "--domain", "a", given="我们在北京") == "我们 在 北京\n"
    assert cws("cut", "--model", model, "--domain", "b", given="我们在北京") == "我 们 在 北 京\n"
    assert "each of several corpora must be DOMAIN=FILE" in cws("train", a, b, "--output", model, code=1)
    assert "a domain must be named once" in cws("train", f"a={a}", f"a={b}", "--output", model, code=1)
    assert "a corpus must be given" in cws("train", "--output", model, code=1)
    assert "--recipe and --data must be given together" in cws("train", "--recipe", "msr", "--output", model, code=1)
    assert "recipe msr" in cws("train", "--recipe", "msr", "--data", tmp_path, "--output", model, code=1)


def test_a_model_is_tuned_and_adapted(tmp_path: Path) -> None:
    corpus, base, model = tmp_path / "train.txt", tmp_path / "base.cws", tmp_path / "own.cws"
    corpus.write_text("我们 爱 北京\n北京 很 大\n" * 9, encoding="utf-8")
    cws("train", corpus, "--epochs", "5", "--output", base)
    cws("train", f"schools={corpus}", "--base", base, "--epochs", "2", "--output", model)
    assert json.loads(cws("model", "info", model))["domains"] == ["general", "schools"]
    assert "--base goes with --epochs" in cws("train", corpus, "--base", base, "--l2", "2", "--output", model, code=1)
    texts, words = tmp_path / "novel.txt", tmp_path / "words.txt"
    texts.write_text("鬼王爱碧瑶\n碧瑶很大\n我们爱碧瑶\n" * 9, encoding="utf-8")
    words.write_text("碧瑶\n", encoding="utf-8")
    options = ("--base", base, "--adapt", texts, "--lexicon", words, "--name", "novel", "--output", model)
    report = json.loads(cws("train", *options))
    assert (report["name"], report["lexicon"]) == ("novel", 1)
    assert "novel" in json.loads(cws("model", "info", model))["domains"]
    assert "--adapt goes with" in cws("train", corpus, *options, code=1)


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom cws_multidomain.cli import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'triton', 'spacy', 'pyspark', 'pyarrow', 'pandas', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"cws {__version__}\n[]\n"
    for command in ((), ("cut",), ("pos",), ("train",), ("evaluate",), ("model",), ("model", "build")):
        assert "usage: cws" in cws(*command, "--help")
    assert "usage: cws" in cws(code=2)
