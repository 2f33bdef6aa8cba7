"""Detectors with an IoU head: inside of torchvision's R-CNNs, or beside any other detector; and a small R-CNN."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("torchvision") is None:
    raise ImportError("iounet.detection needs torchvision: pip install 'iounet[detection]'")

from ._joint import add_iou_net
from ._small import small_fasterrcnn
from ._standalone import StandaloneIoUNet

__all__ = ["StandaloneIoUNet", "add_iou_net", "small_fasterrcnn"]
