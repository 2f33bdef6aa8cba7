"""A gate: which models pass, against limits and against baselines, and how a build server reads it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from paramcorrupt import Gate, Objective, Report, gate, indicator, multistep, relative, scan
from paramcorrupt._tabular import weight_hash

if TYPE_CHECKING:
    from pathlib import Path

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


@pytest.fixture
def batches(model: nn.Module) -> Batches:
    """Data on which the model is right, except for a tenth."""
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    y[:10] = (y[:10] + 1) % 3
    return [(x[:60], y[:60]), (x[60:], y[60:])]


def rules(found: Gate) -> dict[str, Any]:
    return {case.rule: case for case in found.cases}


# --- limits ---------------------------------------------------------------------------------------------------------


def test_all_weights_are_changed_together_and_judged_by_each_rule(model, batches) -> None:
    worst = indicator(model, "cross_entropy", batches, eps=1.0)
    drop = 100 * (worst.accuracy - worst.accuracy_corrupted)
    found = gate(model, "cross_entropy", batches, eps=1.0, max_drop=drop - 1, max_increase=worst.measured + 0.1)
    cases = rules(found)
    assert (cases["max_drop"].passed, cases["max_increase"].passed, found.passed) == (False, True, False)
    assert cases["max_drop"].value == pytest.approx(drop)
    assert cases["max_increase"].value == pytest.approx(worst.measured, rel=1e-5)
    assert cases["max_drop"].limit == drop - 1
    assert found.report[0].predicted == pytest.approx(worst.predicted, rel=1e-6)


def test_a_drop_of_exactly_the_limit_passes(model, batches) -> None:
    lost = gate(model, "cross_entropy", batches, eps=1.0, max_drop=0.0).cases[0].value
    assert lost == round(lost)  # of 100 samples
    assert gate(model, "cross_entropy", batches, eps=1.0, max_drop=round(lost)).passed
    assert not gate(model, "cross_entropy", batches, eps=1.0, max_drop=round(lost) - 1).passed


def test_only_rules_that_are_given_are_cases(model, batches) -> None:
    assert [case.rule for case in gate(model, "cross_entropy", batches, eps=0.1, max_drop=5).cases] == ["max_drop"]
    assert [case.rule for case in gate(model, "cross_entropy", batches, eps=0.1, max_increase=5).cases] == [
        "max_increase"
    ]


def test_with_groups_the_worst_group_counts(model, batches) -> None:
    report = scan(model, "cross_entropy", batches, eps=relative(0.3), verify="all")
    found = gate(model, "cross_entropy", batches, eps=relative(0.3), groups="tensor", verify="all", max_increase=0.0)
    worst = max(report, key=lambda row: row.measured)
    assert found.cases[0].group == worst.group
    assert found.cases[0].value == pytest.approx(worst.measured)
    assert worst.group in found.cases[0].message
    assert not found.passed


def test_more_steps_find_worse_changes(model, batches) -> None:
    climbed = multistep(model, "cross_entropy", batches, eps=1.0, steps=4)
    found = gate(model, "cross_entropy", batches, eps=1.0, steps=4, max_increase=0.0)
    assert found.cases[0].value == pytest.approx(climbed.measured, rel=1e-5)
    assert found.cases[0].value > gate(model, "cross_entropy", batches, eps=1.0, max_increase=0.0).cases[0].value


def test_a_loss_that_is_lost_never_passes(batches) -> None:
    net = nn.Linear(6, 3)
    found = gate(net, "cross_entropy", batches, eps=1e39, max_increase=1e30)
    assert not math.isfinite(found.cases[0].value)
    assert not found.passed


def test_the_model_ends_as_it_began(model, batches) -> None:
    before = weight_hash(model)
    gate(model, "cross_entropy", batches, eps=1.0, max_drop=5)
    gate(model, "cross_entropy", batches, eps=1.0, steps=3, max_drop=5)
    assert weight_hash(model) == before


# --- baselines ------------------------------------------------------------------------------------------------------


def test_limits_are_on_what_is_lost_beyond_the_baseline(model, batches) -> None:
    before = gate(model, "cross_entropy", batches, eps=1.0, max_drop=0.0, max_increase=0.0)
    assert not before.passed
    again = gate(model, "cross_entropy", batches, eps=1.0, max_drop=0.0, max_increase=1e-6, baseline=before)
    assert again.passed
    assert rules(again)["max_drop"].value == 0.0
    with torch.no_grad():
        model[2].weight.mul_(3)
    worse = rules(gate(model, "cross_entropy", batches, eps=1.0, max_increase=0.01, max_drop=99, baseline=before))
    now = indicator(model, "cross_entropy", batches, eps=1.0)
    assert worse["max_increase"].value == pytest.approx(now.measured - rules(before)["max_increase"].value, rel=1e-4)
    assert (worse["max_increase"].passed, worse["max_drop"].passed) == (False, True)
    assert "more than in the baseline" in worse["max_increase"].message


def test_a_baseline_alone_allows_nothing_worse(model, batches) -> None:
    before = scan(model, "cross_entropy", batches, eps=1.0)
    same = gate(model, "cross_entropy", batches, eps=1.0, baseline=before)
    assert [(case.rule, case.passed) for case in same.cases] == [("baseline", True)]
    with torch.no_grad():
        model[2].weight.mul_(3)
    assert not gate(model, "cross_entropy", batches, eps=1.0, baseline=before).passed


def test_a_baseline_is_read_from_the_json_of_a_report_or_of_a_gate(model, batches, tmp_path: Path) -> None:
    report = scan(model, "cross_entropy", batches, eps=1.0, groups="module", p=math.inf, n=3)
    report.to_json(tmp_path / "report.json")
    found = gate(model, "cross_entropy", batches, eps=1.0, p=math.inf, n=3, baseline=tmp_path / "report.json")
    assert [row.group for row in found.report] == [row.group for row in report]
    found.to_json(tmp_path / "gate.json")
    again = gate(model, "cross_entropy", batches, eps=1.0, p=math.inf, n=3, baseline=str(tmp_path / "gate.json"))
    assert again.passed
    assert again.cases == found.cases


@pytest.mark.parametrize(
    "changes",
    [{"eps": 0.5}, {"eps": relative(1.0)}, {"p": 3}, {"n": 4}, {"groups": "module"}, {"mode": "keep"}],
    ids=repr,
)
def test_a_baseline_of_other_settings_is_refused(model, batches, changes: dict[str, Any]) -> None:
    before = scan(model, "cross_entropy", batches, eps=1.0)
    with pytest.raises(ValueError, match="baseline must have been made with"):
        gate(model, "cross_entropy", batches, **({"eps": 1.0, "baseline": before} | changes))


def test_a_baseline_that_is_none_is_refused(model, batches, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"schema": "paramcorrupt/gate/1", "report": []}))
    with pytest.raises(ValueError, match=r"other\.json must have the schema paramcorrupt/scan/1"):
        gate(model, "cross_entropy", batches, eps=1.0, baseline=path)
    with pytest.raises(FileNotFoundError):
        gate(model, "cross_entropy", batches, eps=1.0, baseline=tmp_path / "missing.json")
    with pytest.raises(TypeError, match="baseline must be a path, a Report or a Gate"):
        gate(model, "cross_entropy", batches, eps=1.0, baseline=3)
    unmeasured = scan(model, "cross_entropy", batches, eps=1.0, verify=0)
    with pytest.raises(ValueError, match="baseline must have a group that was measured"):
        gate(model, "cross_entropy", batches, eps=1.0, baseline=unmeasured)
    patterns = scan(model, "cross_entropy", batches, eps=1.0, groups=["0.*"])
    with pytest.raises(ValueError, match="groups must be given"):
        gate(model, "cross_entropy", batches, eps=1.0, baseline=patterns)
    assert gate(model, "cross_entropy", batches, eps=1.0, groups=["0.*"], baseline=patterns).passed


# --- on paper -------------------------------------------------------------------------------------------------------


def test_junit_has_a_case_for_each_rule_and_a_failure_for_each_broken_one(model, batches, tmp_path: Path) -> None:
    found = gate(model, "cross_entropy", batches, eps=1.0, max_drop=0.0, max_increase=99.0)
    text = found.to_junit(tmp_path / "junit.xml")
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert ElementTree.tostring(ElementTree.fromstring(text)) == ElementTree.tostring(root)
    suite = root.find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert list(cases) == ["max_drop", "max_increase"]
    assert cases["max_drop"].find("failure").get("message") == rules(found)["max_drop"].message
    assert cases["max_increase"].find("failure") is None


def test_junit_of_any_name_is_xml(batches) -> None:
    net = nn.Module()
    net.add_module('<a href="x">&\x00\x1b\ud800\u5c42', nn.Linear(6, 3))
    net.forward = lambda x: next(net.children())(x)
    found = gate(net, "cross_entropy", batches, eps=1.0, groups="tensor", max_drop=0.0)
    case = ElementTree.fromstring(found.to_junit()).find(".//failure")
    assert '<a href="x">&\ufffd\ufffd\ufffd\u5c42.' in case.text


def test_a_gate_is_json_csv_and_a_page(model, batches) -> None:
    found = gate(model, "cross_entropy", batches, eps=1.0, max_drop=0.0)
    document = json.loads(found.to_json())
    assert document["schema"] == "paramcorrupt/gate/1"
    assert document["facts"]["passed"] is False
    assert document["report"]["rows"][0]["group"] == "model"
    assert found.to_csv().startswith("rule,passed,value,limit,group,message\n")
    assert "<h1>Not passed. Changing all weights by \u03b5 = 1 costs" in found.to_html()
    assert "<h1>Passed. Changing all weights" in gate(model, "cross_entropy", batches, eps=1.0, max_drop=99.0).to_html()
    assert isinstance(found.report, Report)


# --- what it refuses ------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no rule": ({}, ValueError, "gate must have a rule: max_drop, max_increase or baseline"),
    "text": ({"max_drop": "2"}, TypeError, "max_drop must be a number or None, got '2'"),
    "bool": ({"max_drop": True}, TypeError, "max_drop must be a number"),
    "nan": ({"max_increase": math.nan}, ValueError, "max_increase must be finite, got nan"),
    "infinite": ({"max_drop": math.inf}, ValueError, "max_drop must be finite"),
    "eps": ({"eps": -1.0, "max_drop": 1}, ValueError, r"eps must be .*-1\.0"),
    "p": ({"p": 0, "max_drop": 1}, ValueError, "p must be"),
    "verify": ({"verify": 0, "max_drop": 1}, ValueError, "verify must be at least 1"),
    "steps of groups": ({"steps": 2, "groups": "tensor", "max_drop": 1}, ValueError, "steps must be 1 where groups"),
    "steps": ({"steps": 0, "max_drop": 1}, ValueError, "steps must be"),
    "groups": ({"groups": "layers", "max_drop": 1}, ValueError, "groups must be"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_arguments_are_refused_before_any_forward(model, batches, kind: str) -> None:
    options, error, message = BAD[kind]
    model.register_forward_hook(lambda *arguments: pytest.fail("a forward"))
    with pytest.raises(error, match=message):
        gate(model, "cross_entropy", batches, **({"eps": 1.0} | options))


def test_a_limit_on_accuracy_needs_an_accuracy(model, batches) -> None:
    def step(net: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int, None]:
        return net(batch[0]).square().sum(), len(batch[0]), None

    with pytest.raises(ValueError, match="max_drop needs an accuracy"):
        gate(model, Objective(step), batches, eps=1.0, max_drop=1.0)
