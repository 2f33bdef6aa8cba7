"""The page of the benchmarks: it can be built from every run that is kept, and shows what the run holds."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tree import ROOT

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
VOID = {"meta", "br", "line", "rect", "circle", "polyline", "polygon"}


class Page(HTMLParser):
    """What a page holds. An element that another one's end closes is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.titles: list[tuple[int, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attributes)
        self.attributes |= set(given)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        if re.fullmatch(r"h\d", tag):
            self.titles.append((int(tag[1]), given.get("id", "")))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] != ["style"] else ""


def check(report: ModuleType, runs: list[dict[str, Any]]) -> Page:
    page = Page(report.page(runs))
    assert len(page.ids) == len(set(page.ids))
    assert {link for link in page.links if link[0] != "#" or link[1:] not in page.ids} == set()
    assert page.tags & {"script", "link", "img", "iframe", "object"} == set()
    assert page.attributes & {"src", "onclick", "onload", "xlink:href"} == set()
    levels = [level for level, _ in page.titles]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "a heading is skipped"
    for run in runs:
        assert report.when(run) in page.text
        for outcome in run["outcomes"]:
            assert outcome["name"] in page.text
            assert f"nox -s bench -- {outcome['package']}" in page.text
            for figure in outcome["figures"]:
                assert report.value(figure) in page.text
    return page


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_page_can_be_built_from_each_run(report: ModuleType, path: Path) -> None:
    check(report, [report.read(path)])


def test_a_page_can_be_built_from_all_runs(report: ModuleType) -> None:
    page = check(report, [report.read(path) for path in RESULTS])
    assert [f"r{index}" in page.ids for index in range(len(RESULTS))] == [True] * len(RESULTS)


def test_the_style_loads_nothing() -> None:
    style = (ROOT / "benchmarks" / "report.css").read_text()
    assert re.findall(r"url\(|@import|@font-face", style) == []


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"format": 1}', '{"format": 2, "outcomes": []}', '{"a": 1}\n{"a": 2}']
)
def test_another_file_is_refused_by_name(report: ModuleType, tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json (is no JSON|does not hold a run)"):
        report.read(path)


def made(**changes: Any) -> dict[str, Any]:
    """A run of one figure."""
    figure = {
        "name": "",
        "ours": "adamod",
        "peer": "AdamW",
        "unit": "x the time",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
    }
    figure |= {"target": None, "verdict": "reported", "headline": True, "note": "", "samples": [0.4, 0.5, 0.6]}
    outcome = {
        "package": "adamod",
        "name": "a <step>",
        "about": "One. Two.",
        "clock": "wall time",
        "equal": "",
        "error": "",
    }
    outcome |= {"figures": [figure | changes], "bars": {}, "bars_unit": "", "curves": [], "table": [], "raw": {}}
    machine = {"cpu": "a", "cores": 2, "flags": [], "memory_gib": 1.0, "gpu": None, "system": "b", "python": "3"}
    run = {"format": 1, "date": "2026-01-02T03:04:05+00:00", "profile": "full", "machine": machine, "seconds": 1.0}
    run |= {"command": "nox -s bench -- adamod gasam --full --data DATA", "outcomes": [outcome]}
    return run | {"versions": {"adamod": "1.0.0", "torch": "2.15.0"}}


@pytest.mark.parametrize(
    ("figure", "side"),
    [
        ({}, "ahead"),
        ({"value": 2.0, "low": 1.9, "high": 2.1}, "behind"),
        ({"value": 0.9, "low": 0.8, "high": 1.1}, "even"),
        ({"value": 2.0, "low": 1.9, "high": 2.1, "unit": "x as fast"}, "ahead"),
        ({"value": 2.0, "low": None, "high": None, "unit": "x", "target": {"limit": 3.0, "at_most": False}}, "ahead"),
        ({"value": 2.0, "low": None, "high": None, "unit": "x", "target": {"limit": 3.0, "at_most": True}}, "behind"),
    ],
)
def test_ours_is_to_the_right_where_it_is_better(report: ModuleType, figure: dict[str, Any], side: str) -> None:
    page = report.page([made(**figure)])
    assert re.findall(r'class="point (\w+)"', page) == [side]
    [(middle, place)] = re.findall(r'class="rule" x1="([\d.]+)%" x2=.*?<circle class="point \w+" cx="([\d.]+)%"', page)
    assert (float(place) > float(middle)) == (side != "behind")


@pytest.mark.parametrize(
    "figure", [{"unit": " F1"}, {"unit": "x"}, {"value": -0.1, "low": -0.2, "samples": [-1.0, 1.0]}]
)
def test_what_is_no_ratio_or_has_no_direction_is_told_and_not_drawn(report: ModuleType, figure: dict[str, Any]) -> None:
    page = report.page([made(**figure)])
    assert 'class="lane"' not in page
    assert report.value(made(**figure)["outcomes"][0]["figures"][0]) in page


def test_a_command_and_versions_are_those_of_the_package_alone(report: ModuleType) -> None:
    run = made()
    run["outcomes"].append(run["outcomes"][0] | {"package": "gasam", "versions": {"gasam": "9.9.9"}})
    run["versions"]["jieba"] = "0.42.1"
    text = Page(report.page([run])).text
    assert "nox -s bench -- gasam --full --data DATA gasam 9.9.9" in text
    assert "nox -s bench -- adamod --full --data DATA adamod 1.0.0" in text
    assert "jieba" not in text


def test_missing_figures_are_counted_and_no_headlines(report: ModuleType) -> None:
    run = made(value=None, low=None, high=None, samples=[], verdict="missing", note="AdamW not measured: no torch")
    run["outcomes"] *= 3
    page = report.page([run])
    assert "3 figures not measured here" in page
    assert page.count("class=what") == 0


@pytest.mark.parametrize("verdict", ["failed", "unequal"])
def test_what_went_wrong_is_in_the_summary_and_why(report: ModuleType, verdict: str) -> None:
    figure = {"value": None, "low": None, "high": None, "samples": [], "headline": False}
    page = report.page([made(**figure, verdict=verdict, note="it broke")])
    summary = page.partition("</table>")[0]
    assert summary.count("class=what") == 1
    assert f'class="chip {verdict}"' in summary.partition("<table")[2]
    assert "it broke" in summary


def test_packages_come_by_name_and_what_they_do_together_last(report: ModuleType) -> None:
    run = made()
    run["outcomes"] = [run["outcomes"][0] | {"package": name} for name in ("together", "vade-robust", "adamod")]
    page = Page(report.page([run]))
    assert [place for level, place in page.titles if level == 2 and place.startswith("r0-")] == [
        "r0-adamod", "r0-vade-robust", "r0-together"
    ]  # fmt: skip
    assert [place for place in page.ids if place in ("adamod", "vade-robust", "together")][-1] == "together"


def luminance(colour: str) -> float:
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_letters_and_marks_stand_out_as_wcag_asks(scheme: int) -> None:
    style = (ROOT / "benchmarks" / "report.css").read_text()
    palette = dict(re.findall(r"--(\w+): (#\w{6})", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]))
    least = {"ink": 4.5, "soft": 4.5, "met": 4.5, "unclear": 4.5, "missed": 4.5, "mine": 3, "theirs": 3}
    found = {}
    for ground in ("paper", "card"):
        for name in least:
            low, high = sorted(luminance(palette[key]) for key in (ground, name))
            found[ground, name] = (high + 0.05) / (low + 0.05)
    assert {pair: ratio for pair, ratio in found.items() if ratio < least[pair[1]]} == {}
