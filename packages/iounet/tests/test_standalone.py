"""StandaloneIoUNet: beside each kind of detector, which it must not disturb, and on boxes of any origin."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchvision", reason="detectors are torchvision's")

from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from iounet._boxes import paired_iou
from iounet.detection import StandaloneIoUNet, add_iou_net

CLASSES = 4
LOG = {"scale": "log", "step": 0.05, "on_degrade": "backtrack"}


class Pyramid(nn.Module):
    """Three maps, of strides 4, 8 and 16, with batch normalisation."""

    def __init__(self, widths: tuple[int, int, int] = (8, 8, 8)) -> None:
        super().__init__()
        self.out_channels = list(widths) if len(set(widths)) > 1 else widths[0]
        ends = zip((3, *widths), widths, (4, 2, 2), strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 2 * s - 1, stride=s, padding=s - 1) for a, b, s in ends)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for level, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            maps[str(level)] = x
            x = x.relu()
        return maps


def detector(kind: str) -> Any:
    """A detector with random weights, of which some candidates are left over by its NMS."""
    torch.manual_seed(0)
    anchors = AnchorGenerator(((12,), (24,), (48,)), ((1.0,),) * 3)
    limits = {"score_thresh": 1e-4, "topk_candidates": 25, "detections_per_img": 20, "nms_thresh": 0.4}
    if kind == "retinanet":
        return RetinaNet(Pyramid(), CLASSES, min_size=64, max_size=128, anchor_generator=anchors, **limits)
    if kind == "fcos":
        model = FCOS(Pyramid((32, 32, 32)), CLASSES, min_size=64, max_size=128, anchor_generator=anchors, **limits)
        nn.init.ones_(model.head.regression_head.bbox_reg.bias)  # boxes that overlap
        return model
    if kind == "ssd":
        return SSD(Pyramid((8, 12, 16)), DefaultBoxGenerator([[2], [2], [2]]), (64, 64), CLASSES, **limits)
    heads = {"mask_predictor": MaskRCNNPredictor(256, 8, CLASSES)} if kind == "mask" else {}
    return (MaskRCNN if kind == "mask" else FasterRCNN)(
        Pyramid(),
        **heads,
        min_size=64,
        max_size=128,
        rpn_anchor_generator=anchors,
        rpn_post_nms_top_n_test=30,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "9"], 7, 2),
        box_head=TwoMLPHead(8 * 49, 32),
        box_predictor=FastRCNNPredictor(32, CLASSES),
        box_detections_per_img=20,
        box_nms_thresh=0.4,
    )


KINDS = ["retinanet", "fcos", "ssd", "faster"]


def settings(model: Any) -> Any:
    return getattr(model, "roi_heads", model)


def images(*shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *shape, generator=generator) for shape in shapes or ((48, 72), (80, 60))]


def targets() -> list[dict[str, Any]]:
    return [
        {"boxes": torch.tensor([[5.0, 6, 40, 40], [10, 8, 44, 44]]), "labels": torch.tensor([1, 2]), "jitter_seed": 3},
        {"boxes": torch.tensor([[20.0, 10, 60, 60]]), "labels": torch.tensor([3]), "jitter_seed": 4},
    ]


def assert_same(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> None:
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for name, x in one.items():
            assert torch.equal(x, other[name]), name


# --- beside a detector -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_iou_nms_and_refinement_the_detections_are_the_detectors(kind: str) -> None:
    model = detector(kind)
    expected = model.eval()(images())
    net = StandaloneIoUNet.from_detector(model, nms="nms", refine=False).eval()
    for one, other in zip(net(images()), expected, strict=True):
        assert len(other["boxes"]) == 20
        assert torch.equal(one["labels"], other["labels"])
        assert torch.equal(one["scores"], other["scores"])
        torch.testing.assert_close(one["boxes"], other["boxes"])


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_those_before_the_nms(kind: str) -> None:
    model = detector(kind)
    settings(model).detections_per_img = 10_000
    after = model.eval()(images())
    net = StandaloneIoUNet.from_detector(model, nms="nms", refine=False, iou_threshold=1.0).eval()
    before = net(images())
    for one, other in zip(before, after, strict=True):
        assert len(one["boxes"]) > len(other["boxes"])
        assert (other["boxes"][:, None] - one["boxes"]).abs().amax(2).amin(1).max() < 1e-3
    net.iou_options = type(net.iou_options)(nms="iou", refine=False, iou_threshold=1.0, max_candidates=7)
    assert [len(one["boxes"]) for one in net(images())] == [7, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_the_detector_is_shared_and_detects_as_before(kind: str) -> None:
    model = detector(kind)
    expected = model.eval()(images())
    own = copy.deepcopy(model.state_dict())
    net = StandaloneIoUNet.from_detector(model, samples_per_image=20)
    net.train()(images(), targets())
    net.eval()(images())
    assert net.backbone is model.backbone
    assert net.transform is model.transform
    assert (settings(model).nms_thresh, settings(model).detections_per_img) == (0.4, 20)
    assert_same(model(images()), expected)
    assert all(torch.equal(x, own[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_settings_and_hooks_are_restored_when_the_detector_fails(kind: str) -> None:
    model = detector(kind)
    net = StandaloneIoUNet.from_detector(model).eval()
    failing = (model.head if kind != "faster" else model.roi_heads.box_head).register_forward_hook(
        lambda *_: (_ for _ in ()).throw(RuntimeError("broken"))
    )
    with pytest.raises(RuntimeError, match="broken"):
        net(images())
    failing.remove()
    assert (settings(model).nms_thresh, settings(model).detections_per_img) == (0.4, 20)
    assert not model.backbone._forward_hooks
    assert not model.transform._forward_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_head_is_trained(kind: str) -> None:
    model = detector(kind)
    net = StandaloneIoUNet.from_detector(model, samples_per_image=20).train()
    assert not any(part.training for part in model.modules())
    assert net.iou_head.training
    before = copy.deepcopy(model.state_dict())
    losses = net(images(), targets())
    assert losses.keys() == {"loss_iou"}
    losses["loss_iou"].backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    trained = {name: x for name, x in net.named_parameters() if x.requires_grad}
    # Also of levels on which no box was, so that no process of many waits for their gradients.
    assert all(parameter.grad is not None for parameter in trained.values())
    assert {name.split(".")[0] for name in trained} == ({"iou_head", "lateral"} if kind == "ssd" else {"iou_head"})
    assert all(x.grad.abs().sum() > 0 for name, x in trained.items() if name.startswith("iou_head"))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_maps_of_unequal_width_get_a_convolution_each() -> None:
    net = StandaloneIoUNet.from_detector(detector("ssd"), channels=24)
    assert [tuple(conv.weight.shape) for conv in net.lateral] == [(24, 8, 1, 1), (24, 12, 1, 1), (24, 16, 1, 1)]
    assert net.iou_head.in_channels == 24
    net = StandaloneIoUNet.from_detector(detector("ssd"), featmap_names=["1"])
    assert net.lateral is None
    assert net.iou_head.in_channels == 12


def test_maps_are_those_of_the_box_pool_of_faster_rcnn() -> None:
    assert StandaloneIoUNet.from_detector(detector("faster")).featmap_names == ["0", "1"]
    assert StandaloneIoUNet.from_detector(detector("retinanet")).featmap_names == ["0", "1", "2"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_has_the_classes_of_the_detector(kind: str) -> None:
    assert StandaloneIoUNet.from_detector(detector(kind)).iou_head.num_classes == CLASSES


def test_copies_and_files_detect_the_same() -> None:
    net = StandaloneIoUNet.from_detector(detector("ssd"), key="product", refine_options=LOG).eval()
    expected = net(images())
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert_same(other(images()), expected)
    torch.manual_seed(9)
    fresh = StandaloneIoUNet.from_detector(detector("ssd"), key="product", refine_options=LOG)
    fresh.load_state_dict(net.state_dict())
    assert_same(fresh.eval()(images()), expected)


def test_detection_leaves_the_modes_as_they_were_and_no_gradients() -> None:
    net = StandaloneIoUNet.from_detector(detector("retinanet")).eval()
    with torch.inference_mode():
        expected = net(images())
    found = net(images())
    assert_same(found, expected)
    assert not any(one[name].requires_grad for one in found for name in one)
    assert all(parameter.grad is None for parameter in net.parameters())
    net.train()
    assert_same(net.rescore(images(), found), net.eval().rescore(images(), found))


# --- on its own ------------------------------------------------------------------------------------------------------


def plain(**options: Any) -> StandaloneIoUNet:
    torch.manual_seed(0)
    return StandaloneIoUNet(Pyramid(), CLASSES, **options)


class BoxesAsFeatures(nn.Module):
    """A pool that hands the boxes on."""

    def levels(self, x: dict[str, Tensor], boxes: Tensor, image_shapes: list[tuple[int, int]]) -> Tensor:
        return boxes.new_zeros(len(boxes), dtype=torch.int64)

    def forward(self, x: Any, boxes: Tensor, image_shapes: Any, *, levels: Tensor) -> Tensor:
        return boxes


class Oracle(nn.Module):
    """A head that knows where the object of each image is."""

    def __init__(self, gt: Tensor) -> None:
        super().__init__()
        self.gt = gt

    def forward(self, boxes: Tensor, labels: Tensor) -> Tensor:
        return paired_iou(boxes[:, 1:], self.gt[boxes[:, 0].long()])

    def decode(self, raw: Tensor) -> Tensor:
        return raw


def test_boxes_of_any_origin_are_suppressed_refined_and_scored_in_pixels_of_the_image() -> None:
    net = plain(transform=GeneralizedRCNNTransform(64, 256, [0.5] * 3, [0.5] * 3), refine_options=LOG, score="product")
    gt = torch.tensor([[10.0, 8, 40, 40], [20, 20, 60, 100]])
    scale = torch.tensor([64 / 48, 64 / 80])[:, None]  # of images of 48 x 72 and 120 x 80 pixels
    net.iou_roi_pool, net.iou_head = BoxesAsFeatures(), Oracle(gt * scale)
    shift = torch.tensor([[3.0, 2, -2, 3], [-5, 4, 6, 4], [1, 2, 4, -3]])
    detections = [
        {"boxes": box + shift, "scores": torch.tensor([0.5, 0.9, 0.7]), "labels": torch.tensor([2, 2, 2])} for box in gt
    ]
    before = copy.deepcopy(detections)
    found = net.rescore(images((48, 72), (120, 80)), detections)
    assert_same(detections, before)
    for one, other, box in zip(found, detections, gt, strict=True):
        true = paired_iou(one["boxes"], box[None])
        assert one["labels"].tolist() == [2]
        assert true > paired_iou(other["boxes"], box[None]).amax()
        torch.testing.assert_close(one["ious"], true)
        torch.testing.assert_close(one["scores"], 0.9 * true)


def test_the_threshold_and_number_of_detections_are_those_given() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [30, 0, 40, 10]])  # IoU .538, 0
    one = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7]), "labels": torch.tensor([1, 1, 1])}
    for options, kept in (({}, 2), ({"iou_threshold": 0.6}, 3), ({"detections_per_img": 1}, 1)):
        net = plain(nms="nms", refine=False, **options)
        assert len(net.rescore(images((48, 72)), [one])[0]["boxes"]) == kept


def test_training_boxes_are_where_the_transform_puts_the_ground_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    net = plain(transform=GeneralizedRCNNTransform(64, 256, [0.5] * 3, [0.5] * 3), samples_per_image=20)
    seen: dict[str, Any] = {}
    net.iou_roi_pool.register_forward_pre_hook(lambda _, args: seen.update(boxes=args[1]))
    monkeypatch.setattr(net.iou_head, "loss", lambda raw, labels, iou: seen.update(iou=iou) or raw.sum())
    gt = torch.tensor([[10.0, 8, 40, 40], [20, 20, 60, 100]])
    given = [{"boxes": box[None], "labels": torch.tensor([1])} for box in gt]
    net.train()(images((48, 72), (120, 80)), given)
    scale = torch.tensor([64 / 48, 64 / 80])[:, None]
    expected = paired_iou(torch.stack(seen["boxes"]), (gt * scale)[:, None])
    torch.testing.assert_close(seen["iou"], expected.flatten(), atol=1e-5, rtol=0)
    assert [target["boxes"].tolist() for target in given] == [[box] for box in gt.tolist()]


def test_a_backbone_with_gradients_is_trained_along() -> None:
    net = plain(samples_per_image=20)
    assert net.backbone.training
    net.loss(images(), targets())["loss_iou"].backward()
    assert net.backbone.convs[0].weight.grad.abs().sum() > 0
    net.backbone.requires_grad_(False)
    net.train()
    assert not net.backbone.training
    assert net.iou_head.training


def test_training_lowers_the_loss_and_what_is_learned_refines_boxes() -> None:
    image = torch.zeros(3, 64, 64)
    image[:, 16:44, 12:50] = 1
    gt = torch.tensor([[12.0, 16, 50, 44]])
    net = plain(samples_per_image=64)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for step in range(60):
        target = {"boxes": gt, "labels": torch.tensor([1]), "jitter_seed": step}
        loss = net([image], [target])["loss_iou"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10]) / 4
    shift = torch.arange(0.0, 12, 2)
    boxes = gt + torch.stack([shift, 0 * shift, shift, 0 * shift], 1)
    candidates = {"boxes": boxes, "scores": torch.ones(6), "labels": torch.ones(6, dtype=torch.int64)}
    options = {"nms": "nms", "iou_threshold": 1.0, "refine_options": LOG}
    net.iou_options = type(net.iou_options)(**options, refine=False)
    predicted = net.rescore([image], [candidates])[0]["ious"]
    true = paired_iou(boxes, gt)
    assert torch.corrcoef(torch.stack([predicted, true]))[0, 1] > 0.9
    net.iou_options = type(net.iou_options)(**options)
    refined = paired_iou(net.rescore([image], [candidates])[0]["boxes"], gt)
    assert refined.mean() > true.mean() + 0.05


def test_a_single_map_is_enough() -> None:
    torch.manual_seed(0)
    net = StandaloneIoUNet(nn.Conv2d(3, 6, 3, stride=2, padding=1), CLASSES, samples_per_image=20)
    assert net.featmap_names == ["0"]
    net(images(), targets())["loss_iou"].backward()
    one = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "scores": torch.ones(1), "labels": torch.tensor([1])}
    assert net.rescore(images(), [one, one])[0]["ious"].shape == (1,)


def test_images_may_have_other_channels_than_three() -> None:
    net = StandaloneIoUNet(nn.Conv2d(1, 6, 3, stride=2, padding=1), CLASSES, samples_per_image=20)
    assert net([torch.rand(1, 48, 72)], targets()[:1])["loss_iou"].isfinite()


def test_without_ground_truth_the_loss_is_zero_and_connected() -> None:
    net = StandaloneIoUNet.from_detector(detector("ssd")).train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    loss = net(images(), [empty, empty])["loss_iou"]
    assert loss.item() == 0
    loss.backward()
    assert all(x.grad is not None and not x.grad.any() for x in net.parameters() if x.requires_grad)


def test_without_detections_nothing_is_found() -> None:
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    for nms in ("iou", "nms", "soft"):
        found = plain(nms=nms).rescore(images(), [none, none])
        assert [one["boxes"].shape for one in found] == [(0, 4), (0, 4)]
        assert all(len(one[name]) == 0 for one in found for name in ("scores", "labels", "ious"))


# --- what is refused -------------------------------------------------------------------------------------------------


def test_other_models_are_refused_and_stay_as_they_were() -> None:
    with pytest.raises(TypeError, match=r"RetinaNet, FCOS, SSD or Faster R-CNN, got Linear.*rescore"):
        StandaloneIoUNet.from_detector(nn.Linear(2, 2))
    for kind, words, error in (("mask", r"nothing but boxes.*add_iou_net", TypeError), ("faster", "yet", ValueError)):
        model = detector(kind)
        if kind == "faster":
            add_iou_net(model)
        with pytest.raises(error, match=words):
            StandaloneIoUNet.from_detector(model)
        assert all(parameter.requires_grad for parameter in model.parameters())
    model = detector("retinanet").train()
    for options in ({"nms": "hard"}, {"featmap_names": ["9"]}, {"channels": 0}, {"iou_threshold": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must"):
            StandaloneIoUNet.from_detector(model, **options)
    assert all(part.training for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_bad_images_targets_and_detections_are_named() -> None:
    net = plain()
    one = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(ValueError, match="targets must be given in training mode"):
        net(images())
    with pytest.raises(ValueError, match="targets must be one dict for each image, got 1 for 2 images"):
        net(images(), targets()[:1])
    with pytest.raises(ValueError, match=r"targets\[1\] must hold boxes, labels, got no labels"):
        net(images(), [targets()[0], {"boxes": torch.zeros(0, 4)}])
    with pytest.raises(ValueError, match=r"targets\[0\]\['labels'\] must be \[2\].*got \[1\]"):
        net(images(), [{**targets()[0], "labels": torch.tensor([1])}, targets()[1]])
    with pytest.raises(ValueError, match=r"targets\[1\]\['boxes'\] must have positive width and height, got \[5.0, 5"):
        net(images(), [targets()[0], {"boxes": torch.tensor([[5.0, 5, 5, 9]]), "labels": torch.tensor([1])}])
    with pytest.raises(TypeError, match=r"targets\[0\]\['boxes'\] must be floating, got torch.int64"):
        net(images(), [{**targets()[0], "boxes": targets()[0]["boxes"].long()}, targets()[1]])
    with pytest.raises(ValueError, match="labels must"):
        net(images(), [{**targets()[0], "labels": torch.tensor([1, 9])}, targets()[1]])
    with pytest.raises(ValueError, match=r"detections\[0\]\['boxes'\] must be \[L, 4\], got \[3\]"):
        net.rescore(images(), [{**one, "boxes": torch.zeros(3)}, one])
    with pytest.raises(ValueError, match=r"from_detector.*rescore"):
        net.eval()(images())
    with pytest.raises(ValueError, match="detections_per_img must be at least 1, got 0"):
        plain(detections_per_img=0)
