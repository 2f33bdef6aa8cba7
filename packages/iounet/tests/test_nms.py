"""Suppression: the kernels against their definition, the lists that users get, and what is refused."""

from __future__ import annotations

import doctest
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import iounet
from iounet import _ops, _reference_nms, _suppression
from iounet.ops import batched_nms, iou_guided_nms, nms, soft_nms

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

NAN, INF = float("nan"), float("inf")
LINEAR, GAUSSIAN = range(2)
CHAIN = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])  # IoU .538 .538 .25
NEGATIVE = torch.tensor([[0.0, 0, 100, 100], [-101, -101, -1, -1]])
THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 1.0)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

needs_kernel = pytest.mark.skipif(
    "cpu" not in _ops.KERNELS["nms_owner"], reason="the package was built without its C++ kernels"
)


def scene(n: int, seed: int = 0, objects: int = 0, size: float = 300, dtype: torch.dtype = torch.float32) -> Any:
    """Boxes around some objects, and three random numbers of each."""
    generator = torch.Generator().manual_seed(seed)
    objects = objects or n // 10 + 1
    sides = 20 + 200 * torch.rand(objects, 2, generator=generator)
    centres = size * torch.rand(objects, 2, generator=generator)
    at = torch.randint(objects, (n,), generator=generator)
    side = sides[at] * torch.exp(0.15 * torch.randn(n, 2, generator=generator))
    centre = centres[at] + 0.1 * side * torch.randn(n, 2, generator=generator)
    boxes = torch.cat((centre - side / 2, centre + side / 2), 1)
    return boxes.to(dtype), *torch.rand(3, n, generator=generator).to(dtype)


def iou(a: Tensor, b: Tensor) -> float:
    low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
    inter = (high - low).clamp(min=0).prod()
    return float(inter / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter))


def literal(boxes: Tensor, scores: Tensor, ious: Tensor, labels: Tensor, thr: float) -> tuple[list[Any], ...]:
    """The algorithm as the paper has it, a set of boxes at a time: kept boxes, their scores, and members."""
    kept, best, members = [], [], []
    left = list(range(len(boxes)))
    while left:
        m = max(left, key=lambda i: (ious[i], -i))
        cluster = [j for j in left if j == m or (labels[j] == labels[m] and iou(boxes[m], boxes[j]) > thr)]
        left = [j for j in left if j not in cluster]
        kept.append(m)
        best.append(max(float(scores[j]) for j in cluster))
        members.append(cluster)
    return kept, best, members


# --- kernels against the definition ---------------------------------------------------------------------------------


@needs_kernel
def test_the_cpu_has_kernels_of_its_own():
    assert "cpu" in _ops.KERNELS["nms_owner"]
    assert "cpu" in _ops.KERNELS["soft_nms_order"]


@st.composite
def problems(draw: Callable[..., Any]) -> tuple[Any, ...]:
    """Boxes, keys and labels; some with ties, some with what is no number or no box, not all contiguous."""
    n = draw(st.sampled_from([0, 1, 2, 31, 33, 65]))
    dtype, key_dtype = (draw(st.sampled_from([torch.float32, torch.float64])) for _ in range(2))
    boxes, key, _, _ = scene(n, draw(st.integers(0, 1000)), size=draw(st.sampled_from([50, 300, 2000])), dtype=dtype)
    key = key.to(key_dtype)
    if draw(st.booleans()):
        boxes, key = boxes.round(), (4 * key).round() / 4
    for _ in range(draw(st.integers(0, 4)) if n else 0):
        row = draw(st.integers(0, n - 1))
        key[row] = draw(st.sampled_from([NAN, -NAN, INF, -INF, 0.0, -0.0]))
        boxes[row, draw(st.integers(0, 3))] = draw(st.sampled_from([NAN, INF, -INF, 1e30, -1e-30]))
    labels = draw(st.sampled_from([None, torch.int64, torch.int32, torch.uint8]))
    if labels is not None:
        labels = torch.arange(n).mul(7).remainder(draw(st.integers(1, 5))).to(labels)
    if draw(st.booleans()):
        boxes, key = boxes.t().contiguous().t(), torch.stack((key, key), 1)[:, 1]
    return boxes, key, labels


@needs_kernel
@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.sampled_from(THRESHOLDS))
def test_owners_are_those_of_the_definition(problem, thr):
    assert _ops.nms_owner(*problem, thr).tolist() == _reference_nms.nms_owner(*problem, thr).tolist()


@needs_kernel
@settings(max_examples=25, deadline=None, derandomize=True)
@given(problems(), st.sampled_from(THRESHOLDS), st.sampled_from([-1e30, 1e-3, 0.4]))
def test_linear_soft_nms_is_that_of_the_definition_bit_for_bit(problem, thr, min_score):
    actual = _ops.soft_nms_order(*problem, thr, 0.5, min_score, LINEAR)
    expected = _reference_nms.soft_nms_order(*problem, thr, 0.5, min_score, LINEAR)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@needs_kernel
@pytest.mark.parametrize("labels", [None, torch.arange(150) % 3])
def test_gaussian_soft_nms_rounds_no_worse_than_the_definition(assert_within_twice, labels):
    boxes, scores, _, _ = scene(150)

    def by_box(function: Callable[..., Any], dtype: torch.dtype) -> Tensor:
        order, new_scores = function(boxes.to(dtype), scores.to(dtype), labels, 0.3, 0.5, 0.0, GAUSSIAN)
        return torch.empty_like(new_scores).scatter_(0, order, new_scores)

    exact = by_box(_reference_nms.soft_nms_order, torch.float64)
    reference = by_box(_reference_nms.soft_nms_order, torch.float32)
    assert (exact < 0.9 * scores).sum() > 100
    assert_within_twice(by_box(_ops.soft_nms_order, torch.float32), reference, exact)


@needs_kernel
@pytest.mark.parametrize("n", [1023, 1025])
@pytest.mark.parametrize("objects", [3, 60, 2000])
def test_owners_in_many_leaves_are_those_of_the_definition(n, objects):
    boxes, key, _, _ = scene(n, objects=objects, size=1000)
    owner = _ops.nms_owner(boxes, key, None, 0.4)
    assert owner.tolist() == _reference_nms.nms_owner(boxes, key, None, 0.4).tolist()
    kept = int((owner == torch.arange(n)).sum())
    assert kept < 60 if objects == 3 else kept > 32


@needs_kernel
@pytest.mark.parametrize("thr", [0.3, 0.5, 0.55, 0.7, 1 / 3])
def test_a_ratio_is_rounded_to_float32_and_compared_in_double(thr):
    """Boxes whose IoU is the threshold up to the last bits."""
    wide = 1000.0
    nearest = torch.tensor(thr * wide).view(torch.int32) + torch.arange(-20, 21, dtype=torch.int32)
    seen = {}
    for width in nearest.view(torch.float32).tolist():
        pair = torch.tensor([[0.0, 0, wide, 1], [0, 0, width, 1]])
        ratio = iou(*pair)
        seen[ratio] = ratio > thr
        assert (_ops.nms_owner(pair, torch.tensor([1.0, 0.0]), None, thr)[1] == 0) == (ratio > thr)
    assert set(seen.values()) == {False, True}
    assert torch.tensor(thr).item() in seen


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_and_narrow_boxes_find_each_other_at_any_place(dtype):
    """The search along x1 leaves out what cannot overlap: sizes from 1e-3 to 1e5, far from the origin and near."""
    generator = torch.Generator().manual_seed(0)
    side = torch.exp(torch.empty(900, 2, dtype=torch.float64).uniform_(-7, 11.5, generator=generator))
    low = torch.cat((torch.zeros(450), torch.full((450,), 3e5))).double()[:, None] + side * torch.rand(
        900, 2, dtype=torch.float64, generator=generator
    )
    boxes = torch.cat((low, low + side), 1)
    near = boxes + 0.05 * side.repeat(1, 2) * torch.randn(900, 4, dtype=torch.float64, generator=generator)
    boxes = torch.cat((boxes, near)).to(dtype)
    key = torch.rand(1800, generator=generator)
    for thr in (0.0, 0.1, 0.6, 0.9):
        owner = _ops.nms_owner(boxes, key, None, thr)
        expected = _reference_nms.nms_owner(boxes, key, None, thr)
        assert owner.tolist() == expected.tolist()
        assert (owner != torch.arange(1800)).sum() > 100


@needs_kernel
def test_the_same_bits_on_any_number_of_threads():
    boxes, scores, _, _ = scene(20_000, size=3000)
    labels = torch.arange(20_000) % 13
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            soft = _ops.soft_nms_order(boxes, scores, labels, 0.3, 0.5, 1e-3, GAUSSIAN)
            results.append((_ops.nms_owner(boxes, scores, labels, 0.5), *soft))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


# --- lists ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


def test_the_chain_gives_the_clusters_of_the_paper(device):
    scores, ious = torch.tensor([0.2, 0.9, 0.5]), torch.tensor([0.9, 0.8, 0.7])
    arguments = (x.to(device) for x in (CHAIN, scores, ious, torch.ones(3, dtype=torch.int64)))
    keep, cluster_score, cluster_id = iou_guided_nms(*arguments)
    assert keep.tolist() == [0, 2]
    assert cluster_score.tolist() == pytest.approx([0.9, 0.5])
    assert cluster_id.tolist() == [0, 0, 1]


@pytest.mark.parametrize("key", ["iou", "product"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_those_of_the_literal_algorithm(key, ties, seed):
    boxes, scores, ious, other = scene(60, seed)
    if ties:
        boxes, scores, ious = boxes.round(), (5 * scores).round() / 5, (5 * ious).round() / 5
    labels = (3 * other).long() * 400_000 - 3
    keep, cluster_score, cluster_id = iou_guided_nms(boxes, scores, ious, labels, 0.4, key=key)
    rank = ious if key == "iou" else scores * ious
    kept, best, members = literal(boxes, scores, rank, labels, 0.4)
    place = {m: k for k, m in enumerate(kept)}
    assert sorted(keep.tolist()) == sorted(kept)
    assert cluster_score.tolist() == [best[place[m]] for m in keep.tolist()]
    assert [sorted((cluster_id == k).nonzero()[:, 0].tolist()) for k in range(len(keep))] == [
        members[place[m]] for m in keep.tolist()
    ]
    ranks = [(score, -place[m]) for score, m in zip(cluster_score.tolist(), keep.tolist(), strict=True)]
    assert all(a > b for a, b in pairwise(ranks))  # by score, and where equal in the order of the algorithm


def test_a_cluster_takes_the_score_of_a_box_that_was_removed_and_only_of_its_class():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    scores, ious = torch.tensor([0.1, 0.6, 0.9]), torch.tensor([0.9, 0.8, 0.7])
    keep, cluster_score, cluster_id = iou_guided_nms(boxes, scores, ious, torch.tensor([1, 1, 2]))
    assert keep.tolist() == [2, 0]
    assert torch.equal(cluster_score, scores[[2, 1]])
    assert cluster_id.tolist() == [1, 1, 0]


def test_equal_cluster_scores_are_in_key_order():
    far = 100 * torch.arange(4.0)[:, None] + torch.tensor([0.0, 0, 10, 10])
    keep, _, cluster_id = iou_guided_nms(
        far, torch.full((4,), 0.5), torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.ones(4).int()
    )
    assert keep.tolist() == [3, 1, 2, 0]
    assert cluster_id.tolist() == [3, 1, 2, 0]


def test_classes_are_apart_at_negative_coordinates_and_whatever_their_numbers():
    scores = torch.tensor([0.9, 0.8])
    assert batched_nms(NEGATIVE, scores, torch.tensor([0, 1]), 0.5).tolist() == [0, 1]
    same = NEGATIVE[[0, 0]]
    for labels in ([0, 10**6], [-1, 1], [2**62, -(2**62)], [0, 2**32]):
        assert batched_nms(same, scores, torch.tensor(labels), 0.5).tolist() == [0, 1]
        assert batched_nms(same, scores, torch.tensor(labels[:1] * 2), 0.5).tolist() == [0]


def test_nothing_and_one_box(device):
    for n in (0, 1):
        boxes, scores, labels = CHAIN[:n].to(device), torch.ones(n, device=device), torch.ones(n, device=device).long()
        expected = list(range(n))
        for keep in (nms(boxes, scores, 0.5), batched_nms(boxes, scores, labels, 0.5)):
            assert keep.dtype == torch.int64
            assert keep.tolist() == expected
        for result in (soft_nms(boxes, scores), soft_nms(boxes, scores, method="gaussian", labels=labels)):
            assert result[0].dtype == torch.int64
            assert [x.tolist() for x in result] == [expected, [1.0] * n]
        keep, cluster_score, cluster_id = iou_guided_nms(boxes, scores, scores, labels)
        assert keep.dtype == cluster_id.dtype == torch.int64
        assert [keep.tolist(), cluster_score.tolist(), cluster_id.tolist()] == [expected, [1.0] * n, expected]


def test_nan_scores_come_first_and_nan_boxes_remove_nothing():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, NAN], [0, 0, INF, 10]])
    assert nms(boxes, torch.tensor([INF, NAN, 2.0, 1.0]), 0.5).tolist() == [1, 2, 3]
    keep, cluster_score, cluster_id = iou_guided_nms(
        boxes, torch.tensor([0.1, 0.2, NAN, 0.3]), torch.ones(4), torch.ones(4).long()
    )
    assert keep.tolist() == [2, 3, 0]
    assert cluster_score[1:].tolist() == pytest.approx([0.3, 0.2])
    assert cluster_id.tolist() == [2, 2, 0, 1]
    keep, scores = soft_nms(boxes, torch.tensor([0.5, NAN, 0.25, 0.125]))
    assert keep.tolist() == [1, 2, 3]
    assert scores[1:].tolist() == [0.25, 0.125]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(dtype):
    boxes, scores, ious, _ = (x.to(dtype) for x in scene(200))
    labels = torch.arange(200) % 2
    wide = boxes.float(), scores.float(), ious.float()
    assert len(set(scores.tolist())) < 200
    assert nms(boxes, scores, 0.5).tolist() == nms(*wide[:2], 0.5).tolist()
    for key in ("iou", "product"):
        actual = iou_guided_nms(boxes, scores, ious, labels, key=key)
        expected = iou_guided_nms(*wide, labels, key=key)
        assert actual[1].dtype == dtype
        assert all(torch.equal(x, y.to(x.dtype)) for x, y in zip(actual, expected, strict=True))
    keep, new_scores = soft_nms(boxes, scores)
    expected, new_expected = soft_nms(*wide[:2])
    assert torch.equal(keep, expected)
    assert torch.equal(new_scores, new_expected.to(dtype))


def test_soft_nms_keeps_classes_apart_and_lists_them_by_score():
    boxes, scores, _, _ = scene(200)
    labels = torch.arange(200) % 3 - 1
    keep, new_scores = soft_nms(boxes, scores, labels=labels)
    assert torch.equal(new_scores, new_scores.sort(descending=True)[0])
    for label in (-1, 0, 1):
        rows = (labels == label).nonzero()[:, 0]
        alone, alone_scores = soft_nms(boxes[rows], scores[rows])
        mine = labels[keep] == label
        assert torch.equal(keep[mine], rows[alone])
        assert torch.equal(new_scores[mine], alone_scores)


def test_soft_nms_drops_what_falls_below_the_lowest_score():
    same = CHAIN[[0, 0, 0]]
    keep, scores = soft_nms(same, torch.tensor([0.5, 0.9, 0.25]), method="gaussian", sigma=1.0, min_score=0.1)
    assert keep.tolist() == [1, 0]
    assert scores.tolist() == pytest.approx([0.9, 0.5 * 0.36787944])  # the third: .25 exp(-1) < .1
    assert soft_nms(same, torch.tensor([0.5, 0.9, 0.25]))[0].tolist() == [1]
    order, new_scores = _ops.soft_nms_order(same, torch.tensor([0.5, 0.9, 0.25]), None, 0.3, 0.5, 1e-3, LINEAR)
    assert order.tolist() == [1, 0, 2]
    assert new_scores[1:].tolist() == [-INF, -INF]


def test_arguments_are_left_as_they_are_and_results_have_no_graph():
    boxes, scores, ious, _ = (x.requires_grad_() for x in scene(50))
    labels = torch.ones(50, dtype=torch.int32)
    before = [x.detach().clone() for x in (boxes, scores, ious)]
    results = [
        nms(boxes, scores, 0.5),
        batched_nms(boxes, scores, labels, 0.5),
        *soft_nms(boxes, scores, labels=labels),
    ]
    results += iou_guided_nms(boxes, scores, ious, labels, key="product")
    assert not any(x.requires_grad for x in results)
    assert all(map(torch.equal, (boxes, scores, ious), before))


# --- torch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, torch.arange(40) % 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_operators_pass_opcheck(labels, dtype):
    boxes, key, _, _ = scene(40, dtype=dtype)
    torch.library.opcheck(_ops.nms_owner, (boxes, key, labels, 0.5))
    torch.library.opcheck(_ops.soft_nms_order, (boxes, key, labels, 0.3, 0.5, 1e-3, LINEAR))


def test_operators_and_lists_compile_without_a_break():
    boxes, scores, ious, _ = scene(40)
    labels = torch.arange(40) % 2

    def operators(boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        owner = _ops.nms_owner(boxes, scores, labels, 0.5)
        return owner, *_ops.soft_nms_order(boxes, scores, None, 0.3, 0.5, 1e-3, GAUSSIAN)

    def lists(boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        return nms(boxes, scores, 0.5), *soft_nms(boxes, scores), *iou_guided_nms(boxes, scores, ious, labels)

    for function, dynamic in ((operators, False), (lists, True)):
        torch.compiler.reset()
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=dynamic):
            compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
            for n in (40, 40):
                actual, expected = compiled(boxes[:n], scores[:n]), function(boxes[:n], scores[:n])
                assert all(map(torch.equal, actual, expected))


# --- what is refused ------------------------------------------------------------------------------------------------

ONE, LABELS = torch.ones(3), torch.ones(3, dtype=torch.int64)
CALLS: dict[str, Callable[[Tensor, Tensor, Any], Any]] = {
    "nms": lambda boxes, scores, thr: nms(boxes, scores, thr),
    "batched_nms": lambda boxes, scores, thr: batched_nms(boxes, scores, LABELS, thr),
    "soft_nms": lambda boxes, scores, thr: soft_nms(boxes, scores, thr),
    "iou_guided_nms": lambda boxes, scores, thr: iou_guided_nms(boxes, scores, ONE, LABELS, thr),
}
LABELLED: dict[str, Callable[[Any], Any]] = {
    "idxs": lambda labels: batched_nms(CHAIN, ONE, labels, 0.5),
    "labels": lambda labels: iou_guided_nms(CHAIN, ONE, ONE, labels),
    "labels ": lambda labels: soft_nms(CHAIN, ONE, labels=labels),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((CHAIN[0], ONE, 0.5), ValueError, r"boxes must have shape \[N, 4\], got \[4\]"),
        ((torch.ones(3, 5), ONE, 0.5), ValueError, r"boxes must have shape \[N, 4\], got \[3, 5\]"),
        ((CHAIN.long(), ONE, 0.5), TypeError, "boxes must be a floating-point tensor, got torch.int64"),
        ((CHAIN.tolist(), ONE, 0.5), TypeError, "boxes must be a floating-point tensor, got list"),
        ((CHAIN, ONE.bool(), 0.5), TypeError, "scores must be a floating-point tensor, got torch.bool"),
        ((CHAIN, ONE[:2], 0.5), ValueError, r"scores must have shape \[3\], one per box, got \[2\]"),
        ((CHAIN, CHAIN, 0.5), ValueError, r"scores must have shape \[3\], one per box, got \[3, 4\]"),
        ((CHAIN, ONE.to("meta"), 0.5), ValueError, "scores must be on the device of boxes, cpu, got meta"),
        ((CHAIN, ONE, 1.5), ValueError, r"iou_threshold must be in \[0, 1\], got 1.5"),
        ((CHAIN, ONE, -0.1), ValueError, r"iou_threshold must be in \[0, 1\], got -0.1"),
        ((CHAIN, ONE, NAN), ValueError, r"iou_threshold must be in \[0, 1\], got nan"),
    ],
)
def test_a_wrong_argument_is_named_with_its_rule_and_its_value(call, arguments, error, message):
    with pytest.raises(error, match=message):
        call(*arguments)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("labels", [ONE, LABELS.bool(), [1, 1, 1]])
def test_labels_that_are_no_integers_are_refused(name, labels):
    with pytest.raises(TypeError, match=f"{name.strip()} must be a tensor of integers, got"):
        LABELLED[name](labels)


@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_another_length_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name.strip()} must have shape \[3\], one per box, got \[2\]"):
        LABELLED[name](LABELS[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hard"}, "method must be one of linear, gaussian, got 'hard'"),
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"sigma": NAN}, "sigma must be positive and finite, got nan"),
        ({"min_score": -INF}, "min_score must be finite, got -inf"),
    ],
)
def test_options_of_soft_nms_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        soft_nms(CHAIN, ONE, **options)


def test_localization_and_key_are_checked():
    with pytest.raises(ValueError, match=r"localization must have shape \[3\], one per box, got \[1\]"):
        iou_guided_nms(CHAIN, ONE, ONE[:1], LABELS)
    with pytest.raises(ValueError, match="key must be one of iou, product, got 'score'"):
        iou_guided_nms(CHAIN, ONE, ONE, LABELS, key="score")


def test_examples_run():
    names = {"torch": torch, "iounet": iounet}
    runner, finder = doctest.DocTestRunner(), doctest.DocTestFinder()
    for test in finder.find(_suppression, globs=names):
        runner.run(test)
    assert runner.tries > 8
    assert runner.failures == 0
