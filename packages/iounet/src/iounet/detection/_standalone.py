"""An IoU head beside a detector that stays as it is, or on features and boxes of any other origin."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from .._head import IoUHead
from .._pooling import MultiScalePrRoIPool
from ._detectors import before_nms, evaluating, nms_settings, number_of_classes, output_of
from ._options import Options
from ._rescoring import Rescorer
from ._samples import jittered_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._rescoring import Detections

__all__ = ["StandaloneIoUNet"]

_PROBE = (224, 224)  # pixels of an image that any backbone can read


class StandaloneIoUNet(nn.Module):
    r"""An IoU head on the features of a backbone, for candidate boxes of any detector.

    The head is trained on jittered ground truth alone, minimising

    .. math::
        \lambda \, \mathrm{loss}(\mathrm{head}(\mathrm{pool}(F, b))_{c}, \mathrm{IoU}(b, g)),

    so that no detector is needed for it. Feature maps of unequal width get a 1x1 convolution each.
    In training mode ``net(images, targets)`` returns :meth:`loss`. In evaluation ``net(images)`` returns detections, if
    the net was made by :meth:`from_detector`; :meth:`rescore` takes boxes of any origin.

    Args:
        backbone: a module that turns images ``[N, 3, H, W]`` into a feature map or a dict of them, finest first. It is
            trained as far as its parameters require gradients; if none does it stays in evaluation mode. Its maps are
            told by one black image of 224 x 224, or of the transform's fixed size.
        num_classes: as in the detector, where 0 is the background.
        featmap_names: the maps to pool from, among those that there are (default None: all).
        channels: width that maps of unequal width are brought to (default 256, of feature pyramids).
        transform: a ``GeneralizedRCNNTransform`` that normalises, resizes and stacks the images (default None: images
            are stacked as they are, padded to a multiple of 32).
        detections_per_img: the most that :meth:`rescore` returns (default 100).
        options: of :func:`add_iou_net`, ``nms`` to ``max_candidates``; ``iou_threshold`` None is 0.5 here, or the
            detector's ``nms_thresh``. They are read at each call: ``net.iou_options = dataclasses.replace(...)``.

    Raises:
        ValueError: an option is out of its range, or the backbone has no map of the given names.

    Example::

        net = StandaloneIoUNet.from_detector(retinanet_resnet50_fpn_v2(weights="DEFAULT"))
        for images, targets in loader:
            net(images, targets)["loss_iou"].backward()
            ...
        detections = net.eval()(images)

    Reference: B. Jiang et al., Acquisition of Localization Confidence for Accurate Object Detection,
    https://arxiv.org/abs/1807.11590
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        featmap_names: Sequence[str] | None = None,
        channels: int = 256,
        transform: nn.Module | None = None,
        detections_per_img: int = 100,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("detections_per_img", detections_per_img)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.iou_options = Options(**options)
        self.detections_per_img = detections_per_img
        self.source: Any = _Source(backbone, _AsTheyAre() if transform is None else transform)
        found = _widths(backbone, self.transform)
        self.featmap_names = [name for name in found if featmap_names is None or name in featmap_names]
        if not self.featmap_names:
            raise ValueError(f"featmap_names must have one of {', '.join(found)}, got {list(featmap_names or [])}")
        widths = [found[name] for name in self.featmap_names]
        self.lateral: nn.ModuleList | None = None
        if len(set(widths)) > 1:
            self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
            widths = [channels]
        self.iou_roi_pool = MultiScalePrRoIPool(self.featmap_names, 7)
        self.iou_head = IoUHead(widths[0], num_classes, loss=self.iou_options.loss)

    @classmethod
    def from_detector(
        cls,
        model: nn.Module,
        *,
        featmap_names: Sequence[str] | None = None,
        channels: int = 256,
        **options: Any,
    ) -> StandaloneIoUNet:
        """An IoU head beside torchvision's RetinaNet, FCOS, SSD or Faster R-CNN.

        The detector becomes a part of the net, in place and frozen: without gradients, always in evaluation mode. Its
        candidates are those before its NMS: while it runs for them, its ``nms_thresh`` is 1 and its
        ``detections_per_img`` at least ``max_candidates``. One thread at a time may do that.

        Args:
            model: the detector; the net takes over its number of detections and, unless ``iou_threshold`` is given, its
                NMS threshold.
            featmap_names: the maps to pool from (default None: those of ``box_roi_pool`` in Faster R-CNN, else all).
            channels: as in the class.
            options: as in the class.

        Raises:
            TypeError: the model is no such detector, or predicts masks or keypoints, which :func:`add_iou_net` serves.
            ValueError: the model has an IoU head already, or an option is out of its range. It is unchanged then.
        """
        detector: Any = model
        settings = nms_settings(model)
        if featmap_names is None and settings is not model:
            featmap_names = settings.box_roi_pool.featmap_names
        if options.get("iou_threshold") is None and options.get("nms") != "soft":
            options["iou_threshold"] = settings.nms_thresh
        net = cls(
            detector.backbone,
            number_of_classes(model),
            featmap_names=featmap_names,
            channels=channels,
            transform=detector.transform,
            detections_per_img=settings.detections_per_img,
            **options,
        )
        net.source = model.requires_grad_(False).eval()
        return net.to(next(model.parameters()))

    @property
    def backbone(self) -> nn.Module:
        """What computes the features."""
        backbone: nn.Module = self.source.backbone
        return backbone

    @property
    def transform(self) -> nn.Module:
        """What makes a batch of the images."""
        transform: nn.Module = self.source.transform
        return transform

    def train(self, mode: bool = True) -> StandaloneIoUNet:
        """As of any module, but a frozen backbone, and the detector that it is part of, stay in evaluation mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.source.eval()
        return self

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training mode, else the detector's candidates rescored."""
        if self.training:
            if targets is None:
                raise ValueError("targets must be given in training mode, got None")
            return self.loss(images, targets)
        if isinstance(self.source, _Source):
            raise ValueError(
                "the net must be made by from_detector to find candidates: use rescore with boxes of your own"
            )
        with torch.no_grad(), evaluating(self), ExitStack() as stack:
            stack.enter_context(before_nms(nms_settings(self.source), self.iou_options.max_candidates))
            features = stack.enter_context(output_of(self.backbone))
            batch = stack.enter_context(output_of(self.transform))
            candidates = self.source(list(images))
            return self._rescored(images, candidates, batch[0][0].image_sizes, self._maps(features[0]))

    def loss(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The loss of the head on jittered ground truth: ``{"loss_iou": scalar}``, 0 where there is no ground truth.

        Args:
            images: tensors ``[3, H, W]`` in 0..1, as the detector takes them; sizes may differ.
            targets: for each image a dict of ``boxes`` ``[L, 4]`` xyxy in pixels of the image and ``labels`` ``[L]``
                int64; optionally ``iscrowd`` ``[L]``, and an int ``jitter_seed``, as in :func:`add_iou_net`.

        Raises:
            ValueError: there are not as many targets as images, their boxes and labels differ in number, or a box is
                degenerate.
            TypeError: boxes are not floating.
        """
        _check(images, targets, "targets", ("boxes", "labels"))
        for k, target in enumerate(targets):
            good = (target["boxes"][:, 2:] > target["boxes"][:, :2]).all(1)
            if not good.all():
                row = int((~good).nonzero()[0])
                raise ValueError(
                    f"targets[{k}]['boxes'] must have positive width and height, got {target['boxes'][row].tolist()}"
                )
        batch, scaled = self.transform(list(images), [{"boxes": target["boxes"]} for target in targets])
        targets = [{**target, **boxes} for target, boxes in zip(targets, scaled, strict=True)]
        features = self._maps(self.backbone(batch.tensors))
        loss = jittered_loss(self.iou_roi_pool, self.iou_head, features, batch.image_sizes, targets, self.iou_options)
        return {"loss_iou": loss}

    def rescore(self, images: Sequence[Tensor], detections: Sequence[Detections]) -> list[Detections]:
        """Detections after NMS, refinement and scoring by the predicted IoU.

        Args:
            images: tensors ``[3, H, W]`` in 0..1, as the detector takes them; sizes may differ.
            detections: for each image a dict of ``boxes`` ``[K, 4]`` xyxy in pixels of the image, ``scores`` ``[K]``
                and ``labels`` ``[K]`` int64, best before any NMS.

        Returns:
            For each image ``boxes``, ``scores``, ``labels`` and ``ious``, by decreasing score.

        Raises:
            ValueError: there are not as many detections as images, or their fields differ in length.
            TypeError: boxes are not floating.
        """
        _check(images, detections, "detections", ("boxes", "scores", "labels"))
        with torch.no_grad(), evaluating(self):
            batch, _ = self.transform(list(images))
            return self._rescored(images, detections, batch.image_sizes, self._maps(self.backbone(batch.tensors)))

    def _rescored(
        self,
        images: Sequence[Tensor],
        candidates: Sequence[Detections],
        sizes: Sequence[tuple[int, int]],
        features: dict[str, Tensor],
    ) -> list[Detections]:
        originals = [image.shape[-2:] for image in images]
        scaled = [
            {"boxes": resize_boxes(_wide(one["boxes"]), a, b), "scores": one["scores"], "labels": one["labels"]}
            for one, a, b in zip(candidates, originals, sizes, strict=True)
        ]
        rescore = Rescorer(self.iou_roi_pool, self.iou_head, features, sizes, self.iou_options)
        found = rescore(scaled, 0.5, self.detections_per_img)
        for one, a, b in zip(found, sizes, originals, strict=True):
            one["boxes"] = resize_boxes(one["boxes"], a, b)
        return found

    def _maps(self, features: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The maps to pool from, all of one width."""
        maps = _named(features)
        if self.lateral is None:
            return {name: maps[name] for name in self.featmap_names}
        return {name: conv(maps[name]) for name, conv in zip(self.featmap_names, self.lateral, strict=True)}


class _Source(nn.Module):
    """A backbone and a transform in the place of the detector that has both."""

    def __init__(self, backbone: nn.Module, transform: nn.Module) -> None:
        super().__init__()
        self.backbone, self.transform = backbone, transform


class _AsTheyAre(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Only stacks the images."""

    def __init__(self) -> None:
        super().__init__(1, 1, [0.0], [1.0])

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def _widths(backbone: nn.Module, transform: nn.Module) -> dict[str, int]:
    """The channels of every map, by a look at a black image."""
    width, height = getattr(transform, "fixed_size", None) or _PROBE
    like = next(backbone.parameters(), torch.empty(0))
    depth = next((part.in_channels for part in backbone.modules() if isinstance(part, nn.Conv2d)), 3)
    with torch.no_grad(), evaluating(backbone):
        features = backbone(like.new_zeros(1, depth, height, width))
    return {name: x.shape[1] for name, x in _named(features).items()}


def _wide(boxes: Tensor) -> Tensor:
    """At least float32: what a detector under autocast returns has too few bits for pixels."""
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def _named(features: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {"0": features} if isinstance(features, Tensor) else features


def _check(images: Sequence[Tensor], dicts: Sequence[Mapping[str, Any]], name: str, fields: tuple[str, ...]) -> None:
    if len(images) != len(dicts):
        raise ValueError(f"{name} must be one dict for each image, got {len(dicts)} for {len(images)} images")
    for k, one in enumerate(dicts):
        if missing := [field for field in fields if field not in one]:
            raise ValueError(f"{name}[{k}] must hold {', '.join(fields)}, got no {', '.join(missing)}")
        boxes = one["boxes"]
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name}[{k}]['boxes'] must be [L, 4], got {list(boxes.shape)}")
        if not boxes.is_floating_point():
            raise TypeError(f"{name}[{k}]['boxes'] must be floating, got {boxes.dtype}")
        for field in fields[1:]:
            if one[field].shape != boxes.shape[:1]:
                raise ValueError(
                    f"{name}[{k}][{field!r}] must be [{len(boxes)}], one for each box, got {list(one[field].shape)}"
                )
