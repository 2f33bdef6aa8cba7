"""add_iou_net: what it leaves alone, what it trains, and each step of inference on candidates that are known."""

from __future__ import annotations

import copy
import importlib
import io
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchvision", reason="detectors are torchvision's")

from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign

from iounet._boxes import paired_iou, pairwise_iou
from iounet.detection import add_iou_net

CLASSES = 4
LOG = {"scale": "log", "step": 0.05, "on_degrade": "backtrack"}


class Pyramid(nn.Module):
    """Three maps, of strides 4, 8 and 16; or the finest alone."""

    def __init__(self, levels: int = 3) -> None:
        super().__init__()
        self.out_channels, self.levels = 8, levels
        self.stem = nn.Conv2d(3, 8, 7, stride=4, padding=3)
        self.down = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(levels - 1))

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        maps = [self.stem(x)]
        for conv in self.down:
            maps.append(conv(maps[-1].relu()))
        return {str(level): x for level, x in enumerate(maps)} if self.levels > 1 else maps[0]


def detector(kind: str = "faster", **options: Any) -> Any:
    """A detector with random weights, whose scores are near 1/4."""
    torch.manual_seed(0)
    levels = 1 if kind == "single" else 3
    names = [str(level) for level in range(levels)]
    sizes = ((12,), (24,), (48,)) if levels == 3 else ((12, 24, 48),)
    options = {
        "min_size": 64,
        "max_size": 128,
        "rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * levels),
        "rpn_post_nms_top_n_test": 60,
        "box_roi_pool": MultiScaleRoIAlign(names, 7, 2, canonical_scale=24, canonical_level=3),
        "box_head": TwoMLPHead(8 * 49, 32),
        "box_predictor": FastRCNNPredictor(32, CLASSES),
        "box_score_thresh": 0.25,  # half of the candidates
        **options,
    }
    backbone = Pyramid(levels)
    if kind == "mask":
        return MaskRCNN(
            backbone, mask_head=MaskRCNNHeads(8, (8,), 1), mask_predictor=MaskRCNNPredictor(8, 8, CLASSES), **options
        )
    if kind == "keypoint":
        return KeypointRCNN(
            backbone,
            keypoint_head=KeypointRCNNHeads(8, (8,)),
            keypoint_predictor=KeypointRCNNPredictor(8, 3),
            **options,
        )
    return FasterRCNN(backbone, **options)


KINDS = ["faster", "single", "mask", "keypoint"]


def images(*shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *shape, generator=generator) for shape in shapes or ((64, 80), (72, 64))]


def targets(kind: str = "faster") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"boxes": torch.tensor([[5.0, 6, 40, 50], [10, 8, 44, 54]]), "labels": torch.tensor([1, 1]), "jitter_seed": 3},
        {"boxes": torch.tensor([[20.0, 10, 60, 60]]), "labels": torch.tensor([3]), "jitter_seed": 4},
    ]
    for target, image in zip(found, images(), strict=True):
        if kind == "mask":
            target["masks"] = torch.ones(len(target["labels"]), *image.shape[1:], dtype=torch.uint8)
        if kind == "keypoint":
            target["keypoints"] = torch.full((len(target["labels"]), 3, 3), 30.0)
    return found


def assert_same(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> None:
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for name, x in one.items():
            assert torch.equal(x, other[name]), name


# --- what stays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_iou_nms_and_refinement_the_detections_are_torchvisions(kind: str) -> None:
    expected = detector(kind).eval()(images())
    found = add_iou_net(detector(kind), nms="nms", refine=False).eval()(images())
    assert all(0 < len(one["boxes"]) < 100 for one in expected)  # the thresholds decide, not their number
    assert all(((one["ious"] >= 0) & (one["ious"] <= 1)).all() for one in found)
    assert_same([{k: v for k, v in one.items() if k != "ious"} for one in found], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_losses_are_torchvisions(kind: str) -> None:
    torch.manual_seed(5)
    model = detector(kind)
    torch.manual_seed(5)
    expected = model(images(), targets(kind))
    model = add_iou_net(detector(kind), samples_per_image=30)
    torch.manual_seed(5)
    found = model(images(), targets(kind))
    assert found.keys() - expected.keys() == {"loss_iou"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_state_has_the_old_keys_and_those_of_the_head() -> None:
    model = detector()
    before, pool = model.state_dict(), model.roi_heads.box_roi_pool
    assert add_iou_net(model) is model
    new = model.state_dict().keys() - before.keys()
    assert new
    assert all(name.startswith("roi_heads.iou_head.") for name in new)
    assert before.keys() <= model.state_dict().keys()
    assert model.roi_heads.box_roi_pool is pool
    assert isinstance(model.roi_heads, RoIHeads)
    missing, unexpected = model.load_state_dict(before, strict=False)
    assert set(missing) == new
    assert not unexpected


def test_the_head_has_the_device_dtype_and_mode_of_the_model() -> None:
    model = add_iou_net(detector().double().eval())
    assert model.roi_heads.iou_head.fc1.weight.dtype == torch.float64
    assert not any(part.training for part in model.modules())
    found = model([x.double() for x in images()])
    assert found[0]["ious"].dtype == found[0]["boxes"].dtype == torch.float64


@pytest.mark.parametrize("kind", ["faster", "mask"])
def test_copies_and_files_detect_and_train_the_same(kind: str) -> None:
    model = add_iou_net(detector(kind), samples_per_image=30, key="product", refine_options=LOG)
    expected = model.eval()(images())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert other.roi_heads.iou_options == model.roi_heads.iou_options
        assert_same(other(images()), expected)
        assert "loss_iou" in other.train()(images(), targets(kind))
    fresh = add_iou_net(detector(kind), key="product", refine_options=LOG)
    fresh.load_state_dict(model.state_dict())
    assert_same(fresh.eval()(images()), expected)


def test_switching_modes_changes_nothing() -> None:
    model = add_iou_net(detector(), samples_per_image=30)
    expected = model.eval()(images())
    assert set(model.train()(images(), targets())) >= {"loss_iou", "loss_classifier"}
    assert_same(model.eval()(images()), expected)


def test_inference_leaves_no_gradients_whatever_the_mode_of_autograd() -> None:
    model = add_iou_net(detector()).eval()
    expected = model(images())
    assert not any(one[name].requires_grad for one in expected for name in ("boxes", "ious"))
    assert all(parameter.grad is None for parameter in model.parameters())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_same(model(images()), expected)


def test_autocast_leaves_boxes_in_float32() -> None:
    model = add_iou_net(detector(), samples_per_image=30, refine_options=LOG)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images(), targets())["loss_iou"]
        found = model.eval()(images())
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(one[name].dtype == torch.float32 for one in found for name in ("boxes", "ious"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.create_unbacked_symint. is deprecated:FutureWarning")  # torchvision's nms
def test_a_compiled_model_detects_the_same() -> None:
    model = add_iou_net(detector(), refine_options=LOG).eval()
    with torch.no_grad():
        expected = model(images())
        found = torch.compile(model, backend="eager")(images())
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["boxes"], other["boxes"])


# --- what is trained -------------------------------------------------------------------------------------------------


class Recorder:
    """The boxes, labels and IoUs on which the head is trained."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        pool, head = model.roi_heads.iou_roi_pool, model.roi_heads.iou_head
        self.sizes = []
        pool.register_forward_pre_hook(
            lambda _, args: setattr(self, "boxes", args[1]) or setattr(self, "sizes", args[2])
        )
        loss = head.loss

        def record(raw: Tensor, labels: Tensor, iou: Tensor) -> Tensor:
            self.labels, self.iou = labels, iou
            result: Tensor = loss(raw, labels, iou)
            return result

        monkeypatch.setattr(head, "loss", record)


@pytest.mark.parametrize("target", ["source", "max"])
def test_training_boxes_are_jittered_ground_truth_with_its_label_and_iou(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = add_iou_net(detector(), samples_per_image=101, target=target)
    recorder = Recorder(model, monkeypatch)
    given = targets()
    given[0]["boxes"] = torch.tensor(
        [[5.0, 6, 40, 50], [10, 8, 44, 54], [7, 7, 42, 52]]
    )  # these images keep their size
    given[0]["labels"] = torch.tensor([1, 1, 2])
    model(images(), given)
    assert [len(boxes) for boxes in recorder.boxes] == [101, 101]
    assert recorder.iou.min() >= 0.5 - 1e-5
    different = 0
    for k, (boxes, labels, iou) in enumerate(
        zip(recorder.boxes, recorder.labels.split(101), recorder.iou.split(101), strict=True)
    ):
        of_class = labels[:, None] == given[k]["labels"]
        assert of_class.any(1).all()
        with_each = pairwise_iou(boxes, given[k]["boxes"]) * of_class
        assert (with_each - iou[:, None]).abs().amin(1).max() < 1e-5
        different += int((with_each.amax(1) - iou > 1e-5).sum())
        height, width = recorder.sizes[k]
        assert (boxes >= 0).all()
        assert (boxes <= boxes.new_tensor([width, height, width, height])).all()
    assert (different > 0) == (target == "source")


def test_the_loss_reaches_the_head_and_the_backbone() -> None:
    model = add_iou_net(detector(), samples_per_image=30)
    model(images(), targets())["loss_iou"].backward()
    for part in (model.roi_heads.iou_head, model.backbone):
        assert all(parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert all(parameter.grad is None for parameter in model.roi_heads.box_head.parameters())


def test_the_loss_has_the_weight_and_kind_that_are_given() -> None:
    values = {}
    for kind, weight in (("smooth_l1", 1.0), ("smooth_l1", 3.0), ("bce", 1.0)):
        model = add_iou_net(detector(), samples_per_image=30, loss=kind, loss_weight=weight)
        values[kind, weight] = model(images(), targets())["loss_iou"].item()
    assert values["smooth_l1", 3.0] == pytest.approx(3 * values["smooth_l1", 1.0])
    assert values["bce", 1.0] != pytest.approx(values["smooth_l1", 1.0])


def test_the_jitter_seed_of_a_target_decides_its_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = add_iou_net(detector(), samples_per_image=30)
    recorder = Recorder(model, monkeypatch)

    def boxes(*seeds: int | None) -> list[Tensor]:
        chosen = [{**target, "jitter_seed": seed} for target, seed in zip(targets(), seeds, strict=True)]
        model(images(), [{k: v for k, v in target.items() if v is not None} for target in chosen])
        return recorder.boxes

    first, again, other = boxes(1, 2), boxes(1, 2), boxes(1, 3)
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])
    assert not torch.equal(torch.cat(boxes(None, None)), torch.cat(boxes(None, None)))


def test_crowds_and_what_is_outside_of_the_image_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = add_iou_net(detector(), samples_per_image=30)
    recorder = Recorder(model, monkeypatch)
    boxes = torch.tensor([[5.0, 5, 30, 30], [40, 40, 60, 60], [70, 10, 90, 30], [90, 10, 99, 30]])
    target = {
        "boxes": boxes,
        "labels": torch.tensor([1, 2, 3, 1]),
        "iscrowd": torch.tensor([True, False, False, False]),
    }
    model(images((64, 80)), [target])
    assert set(recorder.labels.tolist()) == {2, 3}
    inside = torch.tensor([[40.0, 40, 60, 60], [70, 10, 80, 30]])[recorder.labels - 2]
    torch.testing.assert_close(paired_iou(recorder.boxes[0], inside), recorder.iou, atol=1e-5, rtol=0)


def test_more_ground_truth_than_samples_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = add_iou_net(detector(), samples_per_image=5)
    recorder = Recorder(model, monkeypatch)
    low = torch.rand(20, 2, generator=torch.Generator().manual_seed(2)) * 40
    target = {"boxes": torch.cat([low, low + 12], 1), "labels": torch.arange(20) % 3 + 1, "jitter_seed": 0}
    model(images((64, 80)), [target])
    assert len(recorder.boxes[0]) == 5
    assert recorder.labels.tolist() != target["labels"][:5].tolist()


def test_without_ground_truth_the_loss_is_zero_and_connected() -> None:
    model = add_iou_net(detector(), samples_per_image=30)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    loss = model(images(), [empty, empty])["loss_iou"]
    assert loss.item() == 0
    loss.backward()
    for part in (model.roi_heads.iou_head, model.backbone):
        assert all(parameter.grad.abs().sum() == 0 for parameter in part.parameters())


def test_an_image_without_ground_truth_adds_nothing_to_the_loss() -> None:
    model = add_iou_net(detector(), samples_per_image=30)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    one = images((64, 80))
    alone = model(one, targets()[:1])["loss_iou"]
    together = model([*one, torch.zeros(3, 64, 80)], [targets()[0], empty])["loss_iou"]
    torch.testing.assert_close(alone, together)


# --- what is detected ------------------------------------------------------------------------------------------------


class Proposals(nn.Module):
    """A region proposal network that knows its boxes."""

    def __init__(self, boxes: Tensor) -> None:
        super().__init__()
        self.boxes = boxes

    def forward(self, images: Any, features: Any, targets: Any = None) -> tuple[list[Tensor], dict[str, Tensor]]:
        return [self.boxes.clone() for _ in images.image_sizes], {}


class Scores(nn.Module):
    """A box predictor that knows the probabilities [K, classes], and leaves the boxes alone."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores.repeat(len(x) // len(self.scores), 1)
        return scores.log(), torch.zeros(len(x), 4 * scores.shape[1])


class BoxesAsFeatures(nn.Module):
    """A pool that hands the boxes on, and keeps account of the levels that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def levels(self, x: dict[str, Tensor], boxes: Tensor, image_shapes: list[tuple[int, int]]) -> Tensor:
        return torch.arange(len(boxes))

    def forward(self, x: Any, boxes: Tensor, image_shapes: Any, *, levels: Tensor) -> Tensor:
        self.calls.append((boxes.detach().clone(), levels))
        return boxes


class Oracle(nn.Module):
    """A head that knows the ground truth: the true IoU of a box with the best of its class."""

    def __init__(self, gt: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.gt, self.of_gt = gt, labels

    def forward(self, boxes: Tensor, labels: Tensor) -> Tensor:
        return (pairwise_iou(boxes[:, 1:], self.gt) * (labels[:, None] == self.of_gt)).amax(1)

    def decode(self, raw: Tensor) -> Tensor:
        return raw


class Table(nn.Module):
    """A head that knows the IoU of each box by its left edge."""

    def __init__(self, iou: dict[float, float]) -> None:
        super().__init__()
        self.iou = iou

    def forward(self, boxes: Tensor, labels: Tensor) -> Tensor:
        return torch.tensor([self.iou[x] for x in boxes[:, 1].tolist()])

    def decode(self, raw: Tensor) -> Tensor:
        return raw


def known(boxes: Tensor, scores: Tensor, head: nn.Module, **options: Any) -> Any:
    """A detector with these candidates: scores [K] of class 1, or [K, classes] with the background."""
    if scores.dim() == 1:
        scores = torch.stack([1 - scores, scores], 1)
    model = add_iou_net(detector(box_score_thresh=0.05), **options).eval()
    model.rpn, model.roi_heads.box_predictor = Proposals(boxes), Scores(scores)
    model.roi_heads.iou_roi_pool, model.roi_heads.iou_head = BoxesAsFeatures(), head
    return model


CHAIN = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])
CHAIN_SCORES = torch.tensor([0.2, 0.9, 0.5])
CHAIN_IOU = {0.0: 0.9, 3.0: 0.8, 6.0: 0.7}


def test_iou_nms_ranks_by_predicted_iou_and_passes_the_best_score_of_the_cluster_on() -> None:
    found = known(CHAIN, CHAIN_SCORES, Table(CHAIN_IOU), refine=False)(images((64, 64)))[0]
    assert found["boxes"].tolist() == CHAIN[[0, 2]].tolist()
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.5]))
    torch.testing.assert_close(found["ious"], torch.tensor([0.9, 0.7]))


def test_the_product_key_ranks_by_score_times_iou() -> None:
    found = known(CHAIN, CHAIN_SCORES, Table(CHAIN_IOU), key="product", refine=False)(images((64, 64)))[0]
    assert found["boxes"].tolist() == CHAIN[[1]].tolist()
    torch.testing.assert_close(found["scores"], torch.tensor([0.9]))


def test_the_product_score_orders_detections_anew() -> None:
    iou = {0.0: 0.9, 3.0: 0.1, 6.0: 0.3}
    boxes = torch.tensor([[0.0, 0, 10, 10], [3, 20, 13, 30], [6, 40, 16, 50]])
    scores = torch.tensor([0.3, 0.8, 0.7])
    for nms in ("iou", "nms", "soft"):
        found = known(boxes, scores, Table(iou), nms=nms, refine=False, score="product")(images((64, 64)))[0]
        torch.testing.assert_close(found["scores"], torch.tensor([0.27, 0.21, 0.08]))
        assert found["boxes"].tolist() == boxes[[0, 2, 1]].tolist()
        torch.testing.assert_close(found["ious"], torch.tensor([0.9, 0.3, 0.1]))


def test_predictions_are_shown_within_0_and_1() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [3, 20, 13, 30]])
    head = Table({0.0: 1.25, 3.0: -0.5})
    found = known(boxes, torch.tensor([0.6, 0.5]), head, refine=False, score="product")(images((64, 64)))[0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.6, 0.0]))
    assert found["ious"].tolist() == [1, 0]


def test_soft_nms_lowers_the_score_of_what_overlaps() -> None:
    found = known(CHAIN, CHAIN_SCORES, Table(CHAIN_IOU), nms="soft", refine=False)(images((64, 64)))[0]
    overlap = 7 / 13
    assert found["boxes"].tolist() == CHAIN[[1, 2, 0]].tolist()
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.5 * (1 - overlap), 0.2 * (1 - overlap)]))


def test_the_threshold_is_the_models_unless_given() -> None:
    model = known(CHAIN, CHAIN_SCORES, Table(CHAIN_IOU), refine=False)
    model.roi_heads.nms_thresh = 0.6
    assert len(model(images((64, 64)))[0]["boxes"]) == 3
    model.roi_heads.detections_per_img = 2
    assert len(model(images((64, 64)))[0]["boxes"]) == 2
    model = known(CHAIN, CHAIN_SCORES, Table(CHAIN_IOU), refine=False, iou_threshold=0.2)
    assert len(model(images((64, 64)))[0]["boxes"]) == 1


def test_classes_do_not_meet_in_the_nms() -> None:
    scores = torch.tensor([[0.2, 0.6, 0.2], [0.2, 0.2, 0.6]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    found = known(boxes, scores, Table({0.0: 0.5}), refine=False)(images((64, 64)))[0]
    assert sorted(zip(found["labels"].tolist(), found["scores"].tolist(), strict=True)) == [
        (1, pytest.approx(0.6)),
        (2, pytest.approx(0.6)),
    ]


def noisy(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ground truth on a grid, its labels, and n candidates about it."""
    generator = torch.Generator().manual_seed(4)
    place = torch.tensor([[8.0, 8], [70, 8], [8, 70], [70, 70]])
    gt = torch.cat([place, place + torch.tensor([[40.0, 46], [30, 50], [44, 36], [50, 40]])], 1)
    labels = torch.tensor([1, 2, 3, 1])
    side = (gt[:, 2:] - gt[:, :2]).repeat(1, 2).repeat(n, 1)
    boxes = gt.repeat(n, 1) + 0.08 * side * torch.randn(4 * n, 4, generator=generator)
    return gt, labels, boxes


def probabilities(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Of each class: little but for the box's own."""
    scores = torch.full((len(labels), CLASSES), 0.01)
    scores[torch.arange(len(labels)), labels] = 0.3 + 0.6 * torch.rand(len(labels), generator=generator)
    scores[:, 0] = 1 - scores[:, 1:].sum(1)
    return scores


def test_with_the_true_iou_the_best_located_box_stays_and_refinement_brings_it_closer() -> None:
    gt, labels, boxes = noisy(8)
    scores = probabilities(labels.repeat(8), torch.Generator().manual_seed(6))
    true = pairwise_iou(boxes.clamp(0, 128), gt)
    kept: dict[str, Tensor] = {}
    for name, options in {
        "nms": {"nms": "nms", "refine": False},
        "iou": {"refine": False},
        "refined": {"refine_options": LOG},
    }.items():
        model = known(boxes, scores, Oracle(gt, labels), **options)
        model.transform.min_size = (128,)
        found = model(images((128, 128)))[0]
        assert len(found["boxes"]) == 4
        order = pairwise_iou(gt, found["boxes"]).argmax(1)
        assert found["labels"][order].tolist() == labels.tolist()
        kept[name] = paired_iou(found["boxes"][order], gt)
        torch.testing.assert_close(found["ious"][order], kept[name])
        # The box with the best score is in the cluster of the best located one.
        best = scores[torch.arange(32), labels.repeat(8)].view(8, 4).amax(0)
        torch.testing.assert_close(found["scores"][order], best)
    torch.testing.assert_close(kept["iou"], true.amax(0))
    assert (kept["iou"] >= kept["nms"]).all()
    assert kept["iou"].mean() > kept["nms"].mean()
    assert (kept["refined"] > kept["iou"]).all()
    assert kept["refined"].mean() > kept["iou"].mean() + 0.05


def test_refinement_keeps_the_level_and_class_of_the_start_and_stays_in_the_image() -> None:
    gt = torch.tensor([[-20.0, 2, 30, 40], [40, 30, 70, 80]])
    boxes = torch.tensor([[1.0, 5, 28, 30], [42, 33, 60, 62]])
    scores = torch.tensor([[0.1, 0.1, 0.8], [0.2, 0.7, 0.1]])
    labels = torch.tensor([2, 1])
    model = known(boxes, scores, Oracle(gt, labels), refine_options={**LOG, "starts": 4})
    torch.manual_seed(0)
    found = model(images((64, 64)))[0]
    best = {1: 0.7, 2: 0.8}
    strong = [k for k, score in enumerate(found["scores"].tolist()) if score > 0.5]
    assert [found["labels"][k].item() for k in strong] == [2, 1]
    assert all(found["scores"][k].item() == pytest.approx(best[found["labels"][k].item()]) for k in strong)
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= 64).all()
    assert (paired_iou(found["boxes"][strong], gt) > paired_iou(boxes, gt)).all()
    calls = model.roi_heads.iou_roi_pool.calls
    start = calls[1][0]  # after the candidates: all starts of the first step
    where = {level: start[calls[1][1] == level].mean(0) for level in calls[1][1].tolist()}
    assert len(where) == 4
    for rows, levels in calls[1:]:
        for row, level in zip(rows, levels.tolist(), strict=True):
            assert (row - where[level]).abs().max() < 15


def test_only_the_best_detections_are_refined() -> None:
    boxes = torch.tensor([[2.0, 2, 22, 22], [32, 2, 52, 22], [2, 32, 22, 52]])
    gt = boxes + 3
    scores = torch.tensor([0.5, 0.9, 0.7])
    model = known(boxes, scores, Oracle(gt, torch.ones(3)), refine_top=2, refine_options=LOG)
    found = model(images((64, 64)))[0]
    order = scores.argsort(descending=True)
    moved = (found["boxes"] - boxes[order]).abs().amax(1)
    assert (moved[:2] > 0.1).all()
    assert moved[2] == 0
    torch.testing.assert_close(found["ious"], paired_iou(found["boxes"], gt[order]))


def test_ious_are_predicted_for_the_best_candidates_only() -> None:
    boxes = torch.tensor([[2.0, 2, 22, 22], [32, 2, 52, 22], [2, 32, 22, 52]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    model = known(boxes, scores, Oracle(boxes, torch.ones(3)), refine=False, max_candidates=2)
    found = model(images((64, 64)))[0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7]))
    assert [len(rows) for rows, _ in model.roi_heads.iou_roi_pool.calls] == [2]


@pytest.mark.parametrize("kind", ["mask", "keypoint"])
def test_masks_and_keypoints_are_those_of_the_refined_boxes(kind: str) -> None:
    model = add_iou_net(detector(kind), refine_options=LOG).eval()
    seen: list[list[Tensor]] = []
    getattr(model.roi_heads, f"{kind}_roi_pool").register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    found = model(images((64, 80)))
    plain = model.roi_heads.iou_options
    assert plain.refine
    torch.testing.assert_close(seen[0][0], found[0]["boxes"])
    assert len(found[0]["masks" if kind == "mask" else "keypoints"]) == len(found[0]["boxes"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nms", ["iou", "nms", "soft"])
def test_images_without_candidates_have_no_detections(kind: str, nms: str) -> None:
    model = add_iou_net(detector(kind, box_score_thresh=0.99), nms=nms).eval()
    for one in model(images()):
        assert one["boxes"].shape == (0, 4)
        assert all(len(value) == 0 for value in one.values())
        assert "ious" in one


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nms": "hard"}, "nms must be one of 'iou', 'nms', 'soft', got 'hard'"),
        ({"key": "score"}, "key must"),
        ({"score": "iou"}, "score must"),
        ({"loss": "l2"}, "loss must"),
        ({"target": "min"}, "target must"),
        ({"iou_threshold": 1.5}, "iou_threshold must be None or in .*got 1.5"),
        ({"refine_top": -1}, "refine_top must be at least 0, got -1"),
        ({"samples_per_image": 0}, "samples_per_image must be at least 1, got 0"),
        ({"max_candidates": 0}, "max_candidates must be at least 1, got 0"),
        ({"loss_weight": float("nan")}, "loss_weight must be finite"),
        ({"refine_options": {"speed": 1}}, "refine_options may hold .*got speed"),
        ({"refine_options": {"steps": -1}}, "steps must"),
    ],
)
def test_options_out_of_range_are_refused_and_the_model_stays(options: dict[str, Any], words: str) -> None:
    model = detector()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=words):
        add_iou_net(model, **options)
    assert type(model.roi_heads) is RoIHeads
    assert list(model.state_dict()) == before


def test_a_count_must_be_an_integer() -> None:
    with pytest.raises(TypeError, match=r"samples_per_image must be an int, got 10\.5"):
        add_iou_net(detector(), samples_per_image=10.5)


def test_a_second_head_is_refused() -> None:
    model = add_iou_net(detector())
    before = list(model.state_dict())
    with pytest.raises(ValueError, match="must not have an IoU head yet"):
        add_iou_net(model)
    assert list(model.state_dict()) == before


def test_other_detectors_are_sent_to_the_standalone_net() -> None:
    model = RetinaNet(Pyramid(), 3, anchor_generator=AnchorGenerator(((12,), (24,), (48,)), ((1.0,),) * 3))
    with pytest.raises(TypeError, match=r"got RetinaNet.*StandaloneIoUNet"):
        add_iou_net(model)
    with pytest.raises(TypeError, match=r"got Linear.*StandaloneIoUNet"):
        add_iou_net(nn.Linear(2, 2))


def test_a_predictor_of_another_kind_is_refused() -> None:
    model = detector()
    model.roi_heads.box_predictor = Scores(torch.ones(1, 2))
    with pytest.raises(TypeError, match=r"cls_score.*got Scores"):
        add_iou_net(model)


def test_without_torchvision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "iounet.detection")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"iounet\[detection\]"):
        importlib.import_module("iounet.detection")
