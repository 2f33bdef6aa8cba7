"""The README at the top: its headlines are what the bench measured, to the last digit, and its links lead somewhere.

What a row has in bold is a headline figure as the page of the bench writes it, number and unit, in any number of
digits: `**1.18x the time**`. It stands in the newest results/*-quick.json, or in a run that the row links.
`python benchmarks/run.py --from FILE --headlines` lists those of a run, ready to be copied.
"""

import re
from decimal import Decimal
from types import ModuleType
from typing import Any

import pytest
from tree import ROOT, Package

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
README = (ROOT / "README.md").read_text()
QUICK = next(path for path in reversed(RESULTS) if path.stem.endswith("-quick"))


def headline(package: Package) -> str:
    """The last cell of the package's row."""
    [row] = re.findall(rf"^\| \[`{package.name}`\].*\|$", README, re.MULTILINE)
    return row.split("|")[-2].strip()


def parsed(claim: str, figure: dict[str, Any]) -> tuple[Decimal, Decimal] | None:
    """What a claim says and what it should say of the figure, in as many digits; nothing if the unit is another."""
    parts = re.fullmatch(r"([+-]?[\d,]*\.?\d+)(.*)", claim)
    if parts is None or parts[2].strip() != figure["unit"].strip():
        return None
    number = parts[1].replace(",", "")
    return Decimal(number), Decimal(f"{figure['value']:.{len(number.partition('.')[2])}f}")


def says(claim: str, figure: dict[str, Any]) -> bool:
    """Whether a claim is the figure, rounded to the digits that the claim has."""
    both = parsed(claim, figure)
    return both is not None and both[0] == both[1]


def mended(claim: str, figures: list[dict[str, Any]]) -> str:
    """The claim, and what the closest figure of its unit would have it say."""
    pairs = [both for figure in figures if (both := parsed(claim, figure)) is not None]
    if not pairs:
        return f"{claim}: no headline has this unit"
    return f"{claim}: {min(pairs, key=lambda both: abs(both[0] - both[1]))[1]} was measured"


def test_headlines_are_those_of_the_bench(package: Package, report: ModuleType) -> None:
    cell = headline(package)
    runs = [path for path in RESULTS if path == QUICK or f"benchmarks/results/{path.name}" in cell]
    figures, listings = [], []
    for run in map(report.read, runs):
        figures += report.headlines(run).get(package.name, [])
        listings += [line for line in report.listing(run).splitlines() if line.startswith(f"{package.name}:")]
    claims = re.findall(r"\*\*(.+?)\*\*", cell)
    wrong = [mended(claim, figures) for claim in claims if not any(says(claim, figure) for figure in figures)]
    if len(claims) < 2:
        wrong.append(f"{package.name} has fewer than two headlines in bold")
    if wrong:
        pytest.fail("\n".join([*wrong, f"measured, in {', '.join(path.name for path in runs)}:", *listings]))


def test_no_measured_number_stands_outside_the_bold(package: Package) -> None:
    rest = re.sub(r"\*\*.+?\*\*|\]\(.*?\)", "", headline(package))
    assert re.findall(r"\d[\d.,]*\s*(?:x\b|times|%|points|F1|MB|ms)", rest) == []


@pytest.mark.parametrize(
    ("claim", "true"),
    [
        ("1.183x the time", True), ("1.18x the time", True), ("1.2x the time", True), ("1x the time", True),
        ("1.19x the time", False), ("1.17x the time", False), ("1.182x the time", False), ("1.1x the time", False),
        ("2x the time", False), ("1.18x as fast", False), ("1.18", False), ("-1.18x the time", False),
        ("about 1.18x the time", False), ("1.18x the time of AdamW", False),
    ],
)  # fmt: skip
def test_a_claim_is_held_to_its_last_digit_and_its_unit(claim: str, true: bool) -> None:
    assert says(claim, {"value": 1.1834255, "unit": "x the time"}) == true


@pytest.mark.parametrize(
    ("claim", "value", "unit"),
    [("12,346x as fast", 12345.6, "x as fast"), ("95.54 F1", 95.5353, " F1"), (".880", 0.8798, ""),
     ("-0.5 points", -0.4924, " points"), ("+2.9 points", 2.8788, " points")],
)  # fmt: skip
def test_a_claim_is_written_as_numbers_are(claim: str, value: float, unit: str) -> None:
    assert says(claim, {"value": value, "unit": unit})
    assert not says(claim, {"value": value + 1, "unit": unit})


def test_every_package_has_a_ratio_among_its_headlines(package: Package, report: ModuleType) -> None:
    figures = report.headlines(report.read(QUICK))[package.name]
    assert any(report.advantage(figure) for figure in figures)


def test_links_lead_to_what_is_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    assert "benchmarks/results/page.png" in targets
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_every_package_has_its_paper_among_the_citations(package: Package) -> None:
    papers = re.split(r"^  - type:", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)[1:]
    own = [paper for paper in papers if f"\n    notes: {package.name}\n" in paper]
    titles = [re.search(r'^    title: "?(.*?)"?$', paper, re.MULTILINE)[1] for paper in own]
    bibtex = re.sub(
        r"[{}]|\s+", lambda match: "" if match[0] in "{}" else " ", (package.path / "README.md").read_text()
    )
    assert titles
    assert [title for title in titles if title not in bibtex] == []
