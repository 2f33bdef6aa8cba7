"""Results on paper: JSON that is read again bit for bit, CSV, frames, plots, and pages that show what they say."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paramcorrupt import Report, ReportRow
from paramcorrupt._html import page
from paramcorrupt._numbers import number, percent, scale, suited
from paramcorrupt._svg import MOST_ROWS, Bars, Columns, Heat, Lines, Scatter, Series, shorten
from paramcorrupt._table import cell
from paramcorrupt._tabular import Column, replacing, weight_hash

if TYPE_CHECKING:
    from pathlib import Path

INJECTION = "</td><script>document.title='taken'</script><img src=x onerror=alert(1)>\"'&"
FACTS = {"loss": 0.9227, "clean_accuracy": 0.8, "grouping": "tensor", "eps_relative": 0.02, "p": 2.0, "unit": "nats"}


def row(i: int, **changes: object) -> ReportRow:
    known = ReportRow(f"layer{i}.weight", 100 + i, 0, 10.0, 1.0 / (i + 1), 0.2, 100, 0.8 / (i + 1))
    measured = {"measured": 1.9 / (i + 1), "accuracy": 0.6 + 0.001 * i, "changed": 99, "applied": 0.2}
    return replace(known, **(measured | changes))


def report(count: int = 5, **facts: object) -> Report:
    return Report([row(i) for i in range(count)], FACTS | facts)


def test_results_represent_themselves_by_what_was_found() -> None:
    text = "<Report: layer0.weight is the most fragile: changing it by 2 % of its norm raises the loss by 1.9 nats"
    assert repr(report()).startswith(text)
    assert repr(report()).count("\n") == 0


def test_a_table_in_a_terminal_writes_small_shares_as_numbers_are_written() -> None:
    assert [cell(x, percent=True) for x in (0.0, 0.5, 7.46e-5, 1e-9)] == ["0.00 %", "50.00 %", "0.0075 %", "1e-07 %"]


# --- JSON, CSV, frames ----------------------------------------------------------------------------------------------


def test_a_report_is_read_again_bit_for_bit(tmp_path: Path) -> None:
    rows = [
        row(0, group=INJECTION + "\n\u5c42\ud800", measured=math.inf),
        row(1, predicted=-0.1 + 0.3),
        row(2, measured=-math.inf),
    ]
    rows += [ReportRow("frozen", 7, 1), row(3, measured=None, accuracy=None, changed=None, applied=None)]
    facts = FACTS | {"p": math.inf, "seed": 2**63 - 1, "spearman": None}
    Report(rows, facts).to_json(tmp_path / "report.json")
    again = Report.from_json(tmp_path / "report.json")
    assert list(again) == rows
    assert again.facts() == facts


def test_a_measured_nan_survives_the_file(tmp_path: Path) -> None:
    Report([row(0, measured=math.nan)], FACTS).to_json(tmp_path / "report.json")
    again = Report.from_json(tmp_path / "report.json")[0]
    assert again.measured is not None
    assert math.isnan(again.measured)


def test_json_is_strict_and_says_which_version_and_what_was_not_finite() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads(Report([row(0), row(1, measured=math.nan)], FACTS).to_json(), parse_constant=refuse)
    assert document["schema"] == "paramcorrupt/scan/1"
    assert document["rows"][1]["measured"] is None
    assert document["not_finite"] == [["rows", 1, "measured", "nan"]]


DAMAGE = {
    "newer": (lambda d: d | {"schema": "paramcorrupt/scan/2"}, "must have the schema paramcorrupt/scan/1"),
    "of another kind": (lambda d: d | {"schema": "paramcorrupt/curve/1"}, "must have the schema"),
    "schema is a list": (lambda d: d | {"schema": ["x"]}, "must have the schema"),
    "a list": (lambda d: [d], "must have the schema"),
    "rows are an object": (lambda d: d | {"rows": {}}, "must have facts and rows"),
    "nested facts": (lambda d: d | {"facts": {"loss": []}}, "must have facts and rows"),
    "empty row": (lambda d: d | {"rows": [{}]}, "a row must have"),
    "text for a number": (lambda d: d | {"rows": [d["rows"][0] | {"eps": "1"}]}, "eps of a row must be"),
    "half a weight": (lambda d: d | {"rows": [d["rows"][0] | {"numel": 1.5}]}, "numel of a row must be"),
    "true for a number": (lambda d: d | {"rows": [d["rows"][0] | {"numel": True}]}, "numel of a row must be"),
    "no name": (lambda d: d | {"rows": [d["rows"][0] | {"group": None}]}, "group of a row must be"),
    "NaN in no row": (lambda d: d | {"not_finite": [["rows", 99, "eps", "nan"]]}, "not_finite"),
    "NaN over a number": (lambda d: d | {"not_finite": [["rows", 0, "eps", "nan"]]}, "not_finite"),
    "a number for a list": (lambda d: d | {"not_finite": 5}, "not_finite"),
    "without a list": (lambda d: {k: x for k, x in d.items() if k != "not_finite"}, "not_finite"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_is_no_report_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(damage(json.loads(report().to_json()))))
    with pytest.raises(ValueError, match=message) as refusal:
        Report.from_json(path)
    assert str(path) in str(refusal.value)


NO_JSON = {
    "empty": b"",
    "cut": b"{",
    "NaN": b"NaN",
    "infinity": b'{"schema": Infinity}',
    "deep": b"[" * 100_000,
    "latin": b'"\xe9"',
}


@pytest.mark.parametrize("kind", NO_JSON)
def test_a_file_that_is_no_json_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(NO_JSON[kind])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Report.from_json(path)


def test_csv_has_a_line_for_each_row_and_nothing_where_nothing_is() -> None:
    rows = [row(0, group='a,"b"\nc'), ReportRow("frozen", 7, 1)]
    lines = list(csv.DictReader(io.StringIO(Report(rows, FACTS).to_csv())))
    assert [line["group"] for line in lines] == ['a,"b"\nc', "frozen"]
    assert float(lines[0]["measured"]) == rows[0].measured
    assert lines[1]["measured"] == ""


def test_a_frame_has_the_rows_and_the_facts() -> None:
    pytest.importorskip("pandas", reason="frames need pandas, the extra `table`")
    frame = report(3).to_frame()
    assert frame["predicted"].tolist() == [each.predicted for each in report(3)]
    assert frame.attrs["loss"] == FACTS["loss"]


@pytest.mark.parametrize(("module", "extra", "call"), [("pandas", "table", "to_frame"), ("matplotlib", "plot", "plot")])
def test_a_missing_package_is_called_by_the_extra_that_brings_it(
    monkeypatch, module: str, extra: str, call: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(module), *sys.meta_path])
    with pytest.raises(ImportError, match=re.escape(f"paramcorrupt[{extra}]")):
        getattr(report(), call)()


class Missing:
    """An import system in which a package does not exist."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.package)


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_text("half" * 10_000 + "\ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_what_a_killed_process_left_does_not_hold_up_the_next_of_the_same_number(tmp_path: Path) -> None:
    """As the first processes of containers are."""
    code = """
import os, signal, sys
from paramcorrupt._tabular import replacing
with replacing(sys.argv[1]) as temporary:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "report.json"
    with subprocess.Popen([sys.executable, "-c", code, path]) as process:
        assert process.wait(60) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    left.rename(tmp_path / left.name.replace(str(process.pid), str(os.getpid())))
    report().to_json(path)
    assert json.loads(path.read_text())["schema"] == "paramcorrupt/scan/1"


def test_ctrl_c_right_after_the_temporary_file_was_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.exists", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report().to_json(tmp_path / "report.json")
    assert os.listdir(tmp_path) == []


def test_a_file_keeps_its_permissions_and_its_links(tmp_path: Path) -> None:
    path, link = tmp_path / "report.json", tmp_path / "link.json"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    report().to_json(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert json.loads(path.read_text())["schema"] == "paramcorrupt/scan/1"


def test_a_path_that_cannot_be_written_is_named_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "report.json"
    with pytest.raises(FileNotFoundError, match=re.escape(repr(str(path)))):
        report().to_json(path)
    with pytest.raises(IsADirectoryError, match=re.escape(repr(str(tmp_path)))):
        report().to_csv(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    report(1).to_csv(pipe)
    assert os.read(reader, 1 << 16).decode() == report(1).to_csv()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


# --- the hash of weights --------------------------------------------------------------------------------------------


def test_the_hash_is_of_names_types_shapes_and_bytes() -> None:
    def module(change: str = "") -> dict[str, torch.Tensor]:
        x, y = torch.arange(6.0).view(2, 3), torch.zeros(0)
        named = {"x": x, "y": y}
        if change == "bit":
            x.view(torch.int32)[1, 2] ^= 1
        if change == "zero":
            x[0, 0] = -0.0
        if change == "shape":
            named["x"] = x.view(3, 2)
        if change == "type":
            named["x"] = x.view(torch.int32)
        if change == "layout":
            named["x"] = x.t().contiguous().t()
        if change == "name":
            named = {"z": x, "y": y}
        return named

    assert weight_hash(module()) == weight_hash(module("layout"))
    assert re.fullmatch("[0-9a-f]{64}", weight_hash(module()))
    hashes = {weight_hash(module(change)) for change in ("", "bit", "zero", "shape", "type", "name")}
    assert len(hashes) == 6


def test_the_hash_sees_buffers() -> None:
    model = nn.BatchNorm1d(3)
    before = weight_hash(model)
    model.running_mean += 1
    assert weight_hash(model) != before


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (2.0477, "2.048"),
        (0.02, "0.02"),
        (12345.678, "12,346"),
        (269722, "269,722"),
        (-0.5, "\u22120.5"),
        (3.21e-7, "3.21\u00d710\u207b\u2077"),
        (1e-5, "10\u207b\u2075"),
        (0.0, "0"),
        (math.nan, "NaN"),
        (-math.inf, "\u2212\u221e"),
        (None, "\u2013"),
        (True, "yes"),
    ],
)
def test_numbers_are_written_for_people(x: object, text: str) -> None:
    assert number(x) == text


@pytest.mark.parametrize(
    ("x", "text"), [(0.624, "62.4"), (1.0, "100.0"), (0.005656, "0.566"), (1e-7, "1.0\u00d710\u207b\u2075")]
)
def test_shares_are_written_as_percent(x: float, text: str) -> None:
    assert percent(x) == f"{text}\u202f%"


reals = st.floats(-1e299, 1e299).filter(lambda x: x == 0 or abs(x) > 1e-299)


@given(st.lists(reals, min_size=1, max_size=5), st.booleans())
def test_every_value_has_its_place_on_an_axis_in_order(values: list[float], zero: bool) -> None:
    axis = scale(values, zero=zero)
    places = [axis(x) for x in sorted(values)]
    assert places == sorted(places)
    assert -3 <= places[0] <= places[-1] <= 100.001
    assert 2 <= len(axis.ticks) <= 13
    assert axis(axis.low) == pytest.approx(0, abs=1e-6)
    assert axis(axis.high) == pytest.approx(100)
    if zero:
        assert axis.low <= 0 <= axis.high


@given(st.lists(st.floats(1e-290, 1e290), min_size=1, max_size=5))
def test_a_logarithmic_axis_has_every_positive_value(values: list[float]) -> None:
    axis = suited(values)
    assert axis.log == (max(values) / min(values) > 30)
    assert all(-3 <= axis(x) <= 100.001 for x in values)
    assert all(-1e-6 <= axis(x) <= 100.001 for x in axis.ticks)


def test_a_long_name_keeps_both_ends() -> None:
    name = "encoder." + "x" * 300 + ".weight"
    assert len(shorten(name, 30)) == 30
    assert shorten(name, 30).startswith("encoder.x")
    assert shorten(name, 30).endswith("x.weight")


# --- pages ----------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Every element with its attributes, and the text inside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def count(self, tag: str, kind: str = "") -> int:
        return sum(t == tag and kind in ["", *(a.get("class") or "").split()] for t, a in self.found)


def test_the_page_says_first_what_was_found() -> None:
    text = report(5).to_html()
    headline = html.unescape(re.search("<h1>(.*?)</h1>", text).group(1)).replace("\u202f", " ")
    assert headline == (
        "layer0.weight is the most fragile: changing it by 2 % of its norm raises the loss by 1.9 nats"
        " and costs 20.0 points of accuracy."
    )


def test_a_page_without_measurements_calls_it_a_prediction() -> None:
    rows = [replace(each, measured=None, accuracy=None) for each in report(3)]
    assert "is predicted to be the most fragile" in Report(rows, FACTS).to_html()


def test_a_loss_that_is_lost_is_the_worst() -> None:
    rows = [row(0), row(1, measured=math.nan, accuracy=0.1)]
    assert "layer1.weight is the most fragile" in Report(rows, FACTS).to_html()
    assert "makes the loss NaN" in Report(rows, FACTS).to_html()


def test_swallowed_corruption_is_told_on_the_page() -> None:
    assert "In 1 measured group rounding swallowed most of the change" in report(2, swallowed=1).to_html()
    assert "swallowed most of the change" not in report(2, swallowed=0).to_html()


def test_the_page_has_a_mark_for_every_number_that_is_drawn() -> None:
    elements = Elements(report(5).to_html())
    assert elements.count("rect", "s0") == 5
    assert elements.count("rect", "s1") == 5
    assert elements.count("circle", "mark") == 5
    assert elements.count("tr") == 6


def test_of_thousands_of_rows_the_chart_has_the_first_and_says_so() -> None:
    text = report(3000).to_html()
    elements = Elements(text)
    assert elements.count("rect", "s0") == MOST_ROWS
    assert f"Drawn are the first {MOST_ROWS} of 3,000; the table has all." in text
    assert elements.count("tr") == 3001


def test_the_page_loads_nothing() -> None:
    text = report(5).to_html()
    assert "http" not in re.sub("http-equiv", "", text)
    assert "url(" not in text
    assert "@import" not in text
    links = [a for _, a in Elements(text).found if any(key in a for key in ("src", "href", "xlink:href"))]
    assert links == [{"rel": "icon", "href": "data:,"}]
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text


def test_names_cannot_become_elements() -> None:
    plain = Elements(report(3).to_html())
    rows = [row(i, group=INJECTION + str(i)) for i in range(3)]
    text = Report(rows, FACTS | {"grouping": INJECTION, INJECTION: INJECTION}).to_html()
    hostile = Elements(text)
    assert [tag for tag, _ in hostile.found if tag in ("script", "img")] == ["script"]
    assert all("onerror" not in attributes for _, attributes in hostile.found)
    assert hostile.count("tr") == plain.count("tr")
    assert INJECTION + "0" in html.unescape(text)


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf, 1e308, -1e-320, 0.0])
def test_no_number_breaks_a_page(x: float) -> None:
    rows = [row(0), row(1, predicted=x, measured=x, random_mean=x, random_low=x, random_high=x)]
    rows.append(row(2, measured=x))
    text = Report(rows, FACTS | {"loss": x}).to_html()
    lengths = [a[key] for _, a in Elements(text).found for key in ("x", "width", "cx", "cy", "x1", "y1") if key in a]
    assert lengths
    assert all(re.fullmatch(r"-?[0-9.]+%?", length) for length in lengths)
    assert number(x) in text


def test_a_report_without_any_gradient_has_a_page() -> None:
    text = Report([ReportRow("frozen", 7, 1)], FACTS).to_html()
    assert "nothing was scanned" in text
    assert "frozen" in text


FIGURES = {
    "bars": Bars("A", ["x", "y"], [Series("s", [1.0, -2.0], [0.5, -3.0], [1.5, -1.0]), Series("t", [None, 3.0])]),
    "heat": Heat("A", ["x", "y"], ["0", "1", "2"], [[1.0, 1e-6, 0.0], [None, math.nan, 3.0]], x_label="bit"),
    "lines": Lines("A", "x", "y", [0.1, 1.0, 10.0], [Series("s", [1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [2.0, 3.0, 4.0])]),
    "columns": Columns("A", "x", "y", ["0", "1"], Series("s", [0.5, 0.001], [0.4, 0.0], [0.6, 0.01]), log=True),
    "scatter": Scatter("A", "x", "y", ["a", "b", "c"], [1.0, 2.0, math.inf], [1.0, 3.0, 4.0]),
}
MARKS = {"bars": 3, "heat": 6, "lines": 3, "columns": 2, "scatter": 2}


@pytest.mark.parametrize("kind", FIGURES)
def test_a_figure_has_a_mark_with_a_tooltip_for_each_value(kind: str) -> None:
    drawn = FIGURES[kind].svg()
    marks = re.findall(r'<(?:rect|circle)[^>]*class="mark[^>]*><title>[^<]+</title>', drawn)
    assert len(marks) == MARKS[kind]
    Elements(drawn)


def test_a_series_has_its_colour_in_the_legend_and_on_its_marks() -> None:
    drawn = Lines("A", "x", "y", [1.0], [Series("s", [1.0], color=2), Series("t", [2.0])]).svg()
    assert re.findall('<li><i class="(s.)"', drawn) == ["s2", "s1"]
    assert re.findall('class="mark (s.)"', drawn) == ["s2", "s1"]


def test_a_band_is_behind_the_line_that_has_intervals() -> None:
    assert FIGURES["lines"].svg().count("<polygon") == 1


@pytest.mark.parametrize("kind", FIGURES)
def test_a_plot_is_drawn_on_the_axes_that_are_given(kind: str) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="plots need matplotlib, the extra `plot`")
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    from paramcorrupt._plots import draw

    ax = Figure().subplots()
    assert draw(FIGURES[kind], ax) is ax
    assert ax.get_title(loc="left") == "A"
    ax.figure.canvas.draw()
    sizes = {
        "bars": lambda: len(ax.patches),
        "heat": lambda: ax.images[0].get_array().size,
        "lines": lambda: len(ax.lines[0].get_xdata()),
        "columns": lambda: len(ax.patches),
        "scatter": lambda: len(ax.collections[0].get_offsets()),
    }
    assert sizes[kind]() == {**MARKS, "bars": 4}[kind]


def test_a_report_plots_a_bar_for_each_row() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="plots need matplotlib, the extra `plot`")
    matplotlib.use("agg")
    ax = report(4).plot()
    assert len(ax.patches) == 8
    matplotlib.pyplot.close(ax.figure)


# --- in a browser ---------------------------------------------------------------------------------------------------

PROBE = """<script>
const seen = { errors: [], blocked: 0 };
addEventListener("error", (e) => seen.errors.push(String(e.message)));
addEventListener("securitypolicyviolation", () => seen.blocked++);
</script>"""
ANSWER = """<script>
addEventListener("load", () => {
  const size = (x) => x.getBoundingClientRect();
  const all = (selector, test) => [...document.querySelectorAll(selector)].filter((x) => test(size(x))).length;
  const heads = [...document.querySelectorAll("thead button")];
  const first = () => document.querySelector("tbody tr").cells[0].textContent;
  seen.first = [first()];
  for (const i of [0, 0, 1, 1]) { heads[i].click(); seen.first.push(first()); }
  const field = document.querySelector("input");
  if (field) { field.value = "layer11."; field.dispatchEvent(new Event("input")); }
  seen.filtered = all("tbody tr", (box) => box.height > 0);
  seen.marks = all("rect.mark, circle.mark", (box) => box.width > 0.5 && box.height > 0.5);
  seen.outside = all("svg *, h1, p, dl, ul", (box) => box.right > innerWidth + 1 || box.left < -1);
  seen.wide = document.documentElement.scrollWidth > innerWidth;
  seen.requests = performance.getEntriesByType("resource").length;
  document.body.replaceChildren(JSON.stringify(seen));
});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("opening a page needs Chromium")


@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_the_page_whole_and_asks_for_nothing(tmp_path: Path, browser: str, width: int) -> None:
    rows = [row(i) for i in range(20)]
    text = Report([*rows, row(20, group=INJECTION), row(21, group="long." * 60)], FACTS).to_html()
    path = tmp_path / "page.html"
    path.write_text(text.replace("<head>", f"<head>{PROBE}").replace("</body>", f"{ANSWER}</body>"), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [browser, *options, f"--window-size={width},900", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(html.unescape(re.search("<body>(.*)</body>", shown, re.DOTALL).group(1)))
    assert seen["errors"] == []
    assert (seen["requests"], seen["blocked"]) == (0, 0)
    assert seen["marks"] == 22 * 3
    assert seen["filtered"] == 1
    assert seen["first"] == ["layer0.weight", INJECTION, "long." * 60, "layer0.weight", "long." * 60]
    assert (seen["outside"], seen["wide"]) == (0, False)


def test_the_page_is_whole_without_its_script() -> None:
    without = re.sub("<script>.*</script>", "", report(30).to_html(), flags=re.DOTALL)
    assert Elements(without).count("tr") == 31
    assert Elements(without).count("button") == 0


def test_a_sentence_in_a_table_is_not_cut_off() -> None:
    sentence = "Changing all weights by 1 % of their norm costs 1.56 points of accuracy."
    text = page("Gate", ["x"], {}, [], [{"group": "a" * 50, "message": sentence}], columns={}, version="1")
    assert f'<td class="words" title="{sentence}">' in text
    assert '<td class="name" title="aaaaa' in text


def test_columns_are_shown_with_headings_units_and_meanings() -> None:
    columns = {"share": Column("Share", "%", "of all"), "time": Column("Time", "s")}
    rows = [{"name": "a", "share": 0.5, "time": 2.0, "never": None}]
    text = page("T", ["A lead."], {"time": 3.5}, [], rows, columns=columns, highlights=("time",), version="1")
    assert 'title="of all">Share' in text
    assert "50.0\u202f%" in text
    assert "3.5\u202fs" in text
    assert "<small>s</small>" in text
    assert "never" not in text
