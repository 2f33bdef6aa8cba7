"""Suppression beside torchvision, ensemble_boxes, and the values of mmcv's tests."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

from iounet.ops import batched_nms, iou_guided_nms, nms, soft_nms

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

# Boxes of mmcv's tests/test_ops/test_nms.py, and what its Soft-NMS makes of them.
MMCV = torch.tensor([[6.0, 3, 8, 7], [3, 6, 9, 11], [3, 7, 10, 12], [1, 4, 13, 7]]), torch.tensor([0.6, 0.9, 0.7, 0.2])
MMCV_SCORES = {"linear": [0.9, 0.6, 0.29024392, 0.2], "gaussian": [0.9, 0.59630775, 0.35275510, 0.18650459]}


def peer(name: str) -> ModuleType:
    """A module of another package, or a skip; what it warns of when it is imported is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name.partition(".")[0], reason=f"{name.partition('.')[0]} is not installed (group peers)")
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def torchvision_ops() -> ModuleType:
    return peer("torchvision.ops")


def scene(n: int, generator: torch.Generator, size: float = 100) -> tuple[Tensor, Tensor]:
    low = size * torch.rand(n, 2, generator=generator)
    sides = 10 + 40 * torch.rand(n, 2, generator=generator)
    return torch.cat((low, low + sides), 1), torch.rand(n, generator=generator)


@pytest.mark.parametrize("kind", ["random", "tied", "float16", "bfloat16", "double"])
def test_nms_gives_the_list_of_torchvision(torchvision_ops, kind):
    generator = torch.Generator().manual_seed(0)
    for case in range(250):
        boxes, scores = scene(case % 71, generator)
        thr = (0.0, 0.3, 0.5, 0.7, 0.95, 1.0)[case % 6]
        if kind == "tied":
            boxes, scores = boxes.round(), (10 * scores).round() / 10
        elif kind == "double":
            boxes, scores = boxes.double() * 1.1, scores.double() / 3
        elif kind != "random":
            boxes, scores = boxes.to(getattr(torch, kind)), scores.to(getattr(torch, kind))
        wide = (x if kind == "double" else x.float() for x in (boxes, scores))
        assert nms(boxes, scores, thr).tolist() == torchvision_ops.nms(*wide, thr).tolist()


@pytest.mark.parametrize(("n", "size"), [(5000, 600), (3000, 5000), (4000, 20)])
def test_nms_gives_the_list_of_torchvision_for_many_boxes(torchvision_ops, n, size):
    boxes, scores = scene(n, torch.Generator().manual_seed(1), size)
    for thr in (0.05, 0.5, 0.8):
        assert torch.equal(nms(boxes, scores, thr), torchvision_ops.nms(boxes, scores, thr))


@pytest.mark.parametrize("thr", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_nms_agrees_with_torchvision_at_a_hundred_thousandth_of_the_threshold(torchvision_ops, thr):
    scores, removed = torch.tensor([1.0, 0.5]), set()
    for off in (-1e-5, -1e-7, -3e-8, 0.0, 3e-8, 1e-7, 1e-5):
        for side in (1.0, 7.3, 333.3):
            pair = torch.tensor([[0.0, 0, side, side], [0, 0, side, side * (thr + off)]])
            keep = nms(pair, scores, thr).tolist()
            assert keep == torchvision_ops.nms(pair, scores, thr).tolist()
            removed.add((len(keep) == 1, off == 1e-5, off == -1e-5))
    assert {(True, True, False), (False, False, True)} <= removed
    assert {(False, True, False), (True, False, True)}.isdisjoint(removed)


@pytest.mark.parametrize("labels", [3, 80, 10**6])
def test_batched_nms_gives_the_lists_of_torchvision_class_by_class(torchvision_ops, labels):
    generator = torch.Generator().manual_seed(labels)
    for n in (0, 1, 300):
        boxes, scores = scene(n, generator)
        idxs = torch.randint(min(labels, 80), (n,), generator=generator) * (labels // min(labels, 80))
        keep = batched_nms(boxes - 200, scores, idxs, 0.3)
        expected = [torch.empty(0, dtype=torch.int64)]
        for label in idxs.unique():
            rows = (idxs == label).nonzero()[:, 0]
            expected.append(rows[torchvision_ops.nms(boxes[rows] - 200, scores[rows], 0.3)])
        together = torch.cat(expected).sort()[0]
        assert keep.tolist() == together[scores[together].argsort(descending=True, stable=True)].tolist()


def test_torchvision_merges_classes_at_negative_coordinates_and_we_do_not(torchvision_ops):
    boxes, scores = torch.tensor([[0.0, 0, 100, 100], [-101, -101, -1, -1]]), torch.tensor([0.9, 0.8])
    assert len(torchvision_ops.batched_nms(boxes, scores, torch.tensor([0, 1]), 0.5)) == 1
    assert batched_nms(boxes, scores, torch.tensor([0, 1]), 0.5).tolist() == [0, 1]


def test_iou_guided_nms_by_the_score_is_nms(torchvision_ops):
    boxes, scores = scene(200, torch.Generator().manual_seed(2))
    keep, cluster_score, _ = iou_guided_nms(boxes, scores, scores, torch.zeros(200, dtype=torch.int64), 0.4)
    assert torch.equal(keep, torchvision_ops.nms(boxes, scores, 0.4))
    assert torch.equal(cluster_score, scores[keep])


@pytest.mark.parametrize("method", MMCV_SCORES)
def test_soft_nms_gives_the_values_of_mmcv(method):
    keep, scores = soft_nms(*MMCV, 0.3, method=method, sigma=0.5, min_score=0.01)
    assert keep.tolist() == [1, 0, 2, 3]
    torch.testing.assert_close(scores, torch.tensor(MMCV_SCORES[method]), rtol=1e-6, atol=1e-7)
    assert nms(*MMCV, 0.3).tolist() == [1, 0, 3]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_soft_nms_gives_the_boxes_and_scores_of_ensemble_boxes(method, sigma):
    """Of their inner function, which leaves the new scores in its argument: the outer one returns those of before."""
    theirs: Any = peer("ensemble_boxes.ensemble_boxes_nms")
    boxes, scores = (x.double() for x in scene(150, torch.Generator().manual_seed(3)))
    boxes, function = boxes / 200, {"linear": 1, "gaussian": 2}[method]
    changed = scores.numpy().copy()
    their_keep = theirs.cpu_soft_nms_float(boxes.numpy().copy(), changed, 0.3, sigma, 0.01, function)
    keep, new_scores = soft_nms(boxes, scores, 0.3, method=method, sigma=sigma, min_score=0.01)
    assert 10 < len(keep) < 150
    assert keep.tolist() == their_keep.tolist()
    torch.testing.assert_close(new_scores, torch.from_numpy(changed[changed > 0.01]), rtol=1e-12, atol=0)
    outer = theirs.soft_nms([boxes.numpy()], [scores.numpy()], [[0] * 150], function, 0.3, sigma, 0.01)
    assert torch.equal(torch.from_numpy(outer[0]), boxes[keep])
    assert torch.equal(torch.from_numpy(outer[1]), scores[keep])
