"""Training boxes of an IoU head: ground truth moved at random until its IoU is the one that was drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._boxes import paired_iou

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["sample_jittered_boxes"]

_HALVINGS = 40  # of a bracket of length 1: 1e-12
_DOUBLINGS = 6  # a pure scaling by exp(-64) is below every u that is drawn
_SLACK = 1e-4  # of the image's side: what rounding adds to a box that was scaled, or written with two decimals


def sample_jittered_boxes(
    gt: Tensor,
    n: int,
    low: float = 0.5,
    high: float = 1.0,
    *,
    image_size: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Boxes around each ground truth whose IoU with it is uniform in [low, high].

    .. math::
        \mathrm{IoU}(b(t), b(0)) = u, \qquad
        b(t) = \big(c_x + t v_1 w,\; c_y + t v_2 h,\; w e^{t v_3},\; h e^{t v_4}\big)

    u is stratified: each of n equal parts of [low, high] gives one box of every ground truth, in random order. v is a
    uniform random direction; t is found by bisection in float64. Boxes are clipped to the image inside of the bisected
    function, so that clipping never changes an IoU; v is reversed where the clipped box never comes down to u.

    Args:
        gt: ground-truth boxes xyxy, ``[G, 4]`` floating, pixels.
        n: boxes per ground truth.
        low: smallest IoU (default 0.5, the paper's).
        high: largest IoU (default 1).
        image_size: (height, width) in pixels; None (default) clips nothing.
        generator: of the random numbers (default: torch's global one). They are drawn on its device, so that a CPU
            generator gives the same boxes, up to rounding, wherever ``gt`` is.

    Returns:
        Boxes ``[G, n, 4]`` in the dtype of ``gt``, and their IoU ``[G, n]`` as the rounded boxes have it (float32 where
        ``gt`` has 16 bits).

    Raises:
        ValueError: not 0 <= low < high <= 1, negative n, a degenerate ground truth or one outside of the image.
        TypeError: ``gt`` is not floating, n is no integer.

    Example:
        >>> gt = torch.tensor([[10.0, 20.0, 60.0, 80.0]])
        >>> boxes, iou = sample_jittered_boxes(gt, 4, image_size=(100, 100))
        >>> boxes.shape, bool((iou > 0.499).all())
        (torch.Size([1, 4, 4]), True)

    Reference: B. Jiang et al., Acquisition of Localization Confidence for Accurate Object Detection, section 3.1,
    https://arxiv.org/abs/1807.11590. It gives the range of the IoU and no distribution.
    """
    image = _checked_image(image_size)
    _check(gt, n, low, high, image)
    exact = gt.detach().double()
    u, v = _draw(len(gt), n, low, high, generator, gt.device)
    boxes = _Rays(exact.T.repeat_interleave(n, 1), v, image).solve(u, 0 if low >= 0.5 else _DOUBLINGS)
    boxes = boxes.T.reshape(len(gt), n, 4).to(gt.dtype)
    iou = paired_iou(boxes.double(), exact[:, None])
    return boxes, iou.to(torch.promote_types(gt.dtype, torch.float32))


class _Rays:
    """M boxes that leave their ground truth in M directions and are clipped; tensors are [x and y, M]."""

    def __init__(self, gt: Tensor, v: Tensor, image: tuple[float, float] | None) -> None:
        self.low, self.high = gt[:2], gt[2:]
        self.side = self.high - self.low
        self.centre = self.low + self.side / 2
        self.v = v
        self.clip: tuple[Tensor, Tensor] | None = None
        if image is not None:
            border = gt.new_tensor([[image[1]], [image[0]]])
            self.clip = self.low.clamp(max=0), torch.maximum(self.high, border)

    def at(self, t: Tensor, m: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Low and high coordinates of boxes m at t."""
        centre = self.centre[:, m] + t * self.v[:2, m] * self.side[:, m]
        half = self.side[:, m] / 2 * (t * self.v[2:, m]).exp()
        low, high = centre - half, centre + half
        if self.clip is not None:
            least, most = self.clip[0][:, m], self.clip[1][:, m]
            low, high = low.clamp(least, most), high.clamp(least, most)
        return low, high

    def iou(self, t: Tensor, m: Tensor | slice = slice(None)) -> Tensor:
        low, high = self.at(t, m)
        inter = (torch.minimum(high, self.high[:, m]) - torch.maximum(low, self.low[:, m])).clamp(min=0).prod(0)
        return inter / ((high - low).prod(0) + self.side[:, m].prod(0) - inter)

    def solve(self, u: Tensor, doublings: int) -> Tensor:
        """The boxes [4, M] whose IoU is u. A ray that does not reach it within 2^doublings is reversed."""
        most = torch.ones_like(u)
        short = self._lengthen(most, u, torch.arange(len(u), device=u.device), doublings)
        self.v[:, short] *= -1
        most[short] = 1
        self._lengthen(most, u, short, _DOUBLINGS)
        least = torch.zeros_like(u)
        for _ in range(_HALVINGS):
            middle = (least + most) / 2
            above = self.iou(middle) > u
            least, most = torch.where(above, middle, least), torch.where(above, most, middle)
        return torch.cat(self.at(least))

    def _lengthen(self, t: Tensor, u: Tensor, m: Tensor, doublings: int) -> Tensor:
        """Double t of the boxes m until their IoU is u or less; returns those where it never is."""
        for doubling in range(doublings + 1):
            if doubling:
                t[m] *= 2
            m = m[self.iou(t[m], m) > u[m]]
        return m


def _draw(
    count: int, n: int, low: float, high: float, generator: torch.Generator | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """IoUs [count * n], a stratum each in random order, and unit vectors [4, count * n]."""
    source = generator.device if generator is not None else device
    options: dict[str, Any] = {"dtype": torch.float64, "device": source, "generator": generator}
    stratum = torch.rand(count, n, **options).argsort(1)
    u = low + (high - low) * ((stratum + torch.rand(count, n, **options)) / max(n, 1))
    v = torch.randn(4, count * n, **options)
    return u.flatten().to(device), (v / v.norm(dim=0)).to(device)


def _checked_image(image_size: Sequence[float] | None) -> tuple[float, float] | None:
    if image_size is None:
        return None
    if len(image_size) != 2 or not all(0 < side < math.inf for side in image_size):
        raise ValueError(f"image_size must be a positive (height, width), got {image_size!r}")
    return float(image_size[0]), float(image_size[1])


def _check(gt: Tensor, n: int, low: float, high: float, image: tuple[float, float] | None) -> None:
    if not isinstance(gt, Tensor):
        raise TypeError(f"gt must be a tensor, got {type(gt).__name__}")
    if gt.ndim != 2 or gt.shape[1] != 4:
        raise ValueError(f"gt must have shape [G, 4], got {list(gt.shape)}")
    if not gt.is_floating_point():
        raise TypeError(f"gt must be floating, got {gt.dtype}")
    if not isinstance(n, int):
        raise TypeError(f"n must be an int, got {n!r}")
    if n < 0:
        raise ValueError(f"n must be non-negative, got {n}")
    if not 0 <= low < high <= 1:
        raise ValueError(f"low and high must satisfy 0 <= low < high <= 1, got {low} and {high}")
    box = gt.detach()
    good = box.isfinite().all(1) & (box[:, 2:] > box[:, :2]).all(1)
    if not good.all():
        row = int(good.logical_not().nonzero()[0, 0])
        raise ValueError(f"gt must have positive width and height, got {box[row].tolist()} in row {row}")
    if image is not None:
        slack = _SLACK * max(image)
        least, most = -slack, box.new_tensor([image[1] + slack, image[0] + slack], dtype=torch.float64)
        good = (box[:, :2] >= least).all(1) & (box[:, 2:] <= most).all(1)
        if not good.all():
            row = int(good.logical_not().nonzero()[0, 0])
            size = f"{image[0]:g} x {image[1]:g}"
            raise ValueError(f"gt must be inside of the image of {size}, got {box[row].tolist()} in row {row}: clip it")
