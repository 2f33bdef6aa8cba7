"""Pictures: boxes before and after, and plots of what confidences are worth; plots need the extra `iounet[plot]`."""

from __future__ import annotations

from ._overlay import overlay, sheet
from ._plots import iou_per_iteration, iou_scatter, reliability

__all__ = ["iou_per_iteration", "iou_scatter", "overlay", "reliability", "sheet"]
