"""A Faster R-CNN small enough to be trained from scratch on a few hundred images by one CPU core."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

__all__ = ["small_fasterrcnn"]

_ANCHORS = (30, 60, 96)  # pixels, at strides 8, 16 and 32
_RATIOS = (0.67, 1.0, 1.5)
_OPTIONS: dict[str, Any] = {
    "rpn_pre_nms_top_n_train": 600,
    "rpn_pre_nms_top_n_test": 300,
    "rpn_post_nms_top_n_train": 256,
    "rpn_post_nms_top_n_test": 150,
    "rpn_batch_size_per_image": 64,
    "box_batch_size_per_image": 64,
}


def small_fasterrcnn(
    num_classes: int, *, width: int = 32, channels: int = 64, hidden: int = 256, **options: Any
) -> FasterRCNN:
    """torchvision's ``FasterRCNN`` on a small residual network and a feature pyramid.

    Args:
        num_classes: classes, 0 the background.
        width: channels at stride 4 (default 32); twice, four and eight times as many at strides 8, 16 and 32.
        channels: of the feature pyramid (default 64).
        hidden: width of the box head (default 256).
        options: of ``FasterRCNN``. By default images have 360 to 480 pixels a side, a third to a tenth as many
            proposals as there are used, and anchors have sides of 30, 60 and 96 pixels.

    Example:
        >>> model = small_fasterrcnn(3).eval()
        >>> sorted(model([torch.rand(3, 60, 80)])[0])
        ['boxes', 'labels', 'scores']
    """
    backbone = _Pyramid(width, channels)
    names = [str(level) for level in range(len(_ANCHORS))]
    anchors = AnchorGenerator(tuple((side,) for side in _ANCHORS), (_RATIOS,) * len(_ANCHORS))
    model = FasterRCNN(
        backbone,
        rpn_anchor_generator=options.pop("rpn_anchor_generator", anchors),
        box_roi_pool=options.pop("box_roi_pool", MultiScaleRoIAlign(names, 7, 2)),
        box_head=options.pop("box_head", TwoMLPHead(channels * 7**2, hidden)),
        box_predictor=options.pop("box_predictor", FastRCNNPredictor(hidden, num_classes)),
        **{"min_size": 360, "max_size": 480, **_OPTIONS, **options},
    )
    return model.to(memory_format=torch.channels_last)


class _Pyramid(nn.Module):
    """Maps "0", "1", "2" at strides 8, 16 and 32."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.out_channels = channels
        self.stem = nn.Sequential(
            _convolution(3, width // 2, stride=2),
            nn.ReLU(True),
            _convolution(width // 2, width, stride=2),
            nn.ReLU(True),
        )
        a, b, c = 2 * width, 4 * width, 8 * width
        self.stages = nn.ModuleList(
            [
                _Block(width, a, 2),
                nn.Sequential(_Block(a, b, 2), _Block(b, b)),
                nn.Sequential(_Block(b, c, 2), _Block(c, c)),
            ]
        )
        self.fpn = FeaturePyramidNetwork([a, b, c], channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        maps = OrderedDict()
        for level, stage in enumerate(self.stages):
            maps[str(level)] = x = stage(x)
        # Autocast ends here: boxes are pooled in float32.
        return OrderedDict((name, x.float()) for name, x in self.fpn(maps).items())


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(inputs, outputs, stride=stride), nn.ReLU(True), _convolution(outputs, outputs)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _convolution(inputs, outputs, size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)
    )
