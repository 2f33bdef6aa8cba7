"""Precise RoI pooling as users call it: checks, lists of boxes, modules for one map and for feature pyramids."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from . import _autograd, _reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MultiScalePrRoIPool", "PrRoIPool2d", "prroi_pool"]

Boxes: TypeAlias = "Tensor | Sequence[Tensor]"
Padding: TypeAlias = Literal["zeros", "border"]
Degenerate: TypeAlias = Literal["zero", "limit"]

_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


# --- checks ---------------------------------------------------------------------------------------------------------


def _check_size(size: int | Sequence[int]) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if not all(isinstance(x, (int, torch.SymInt)) and not isinstance(x, bool) for x in pair):
        raise TypeError(f"output_size must be an integer or a pair of integers, got {size!r}")
    if len(pair) != 2 or pair[0] < 1 or pair[1] < 1:
        raise ValueError(f"output_size must be one or two integers of at least 1, got {size!r}")
    return pair[0], pair[1]


def _check_choice(name: str, value: str, allowed: tuple[str, str]) -> bool:
    """Whether the second of two options is chosen."""
    if value not in allowed:
        raise ValueError(f"{name} must be {allowed[0]!r} or {allowed[1]!r}, got {value!r}")
    return value == allowed[1]


def _check_scale(scale: float) -> float:
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"spatial_scale must be a finite positive number, got {scale!r}")
    return float(scale)


def _check_floating(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATING:
        raise TypeError(f"{name} must have dtype float64, float32, float16 or bfloat16, got {x.dtype}")


def _check_map(name: str, x: Tensor) -> None:
    _check_floating(name, x)
    if x.ndim != 4 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{name} must be [N, C, H, W] with H and W of at least 1, got shape {list(x.shape)}")


def _check_boxes(name: str, x: Tensor, columns: int, meaning: str, device: torch.device) -> None:
    _check_floating(name, x)
    if x.ndim != 2 or x.shape[1] != columns:
        raise ValueError(f"{name} must be {meaning}, got shape {list(x.shape)}")
    if x.device != device:
        raise ValueError(f"{name} must be on the device of the map, {device}, got {x.device}")


def _can_be_read(x: Tensor) -> bool:
    """Whether control may depend on values at no cost: not on a GPU, nor traced or transformed."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and type(x) in (Tensor, nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def _check_images(rois: Tensor, n: int) -> None:
    image = rois.detach()[:, 0]
    if n and torch.equal(image, image.trunc().clamp(0, n - 1)):
        return
    for row, value in enumerate(image.tolist()):
        if not (0 <= value < n and value == int(value)):
            raise ValueError(f"boxes[{row}, 0] must be the integer index of one of {n} images, got {value:g}")


def _check_levels(levels: Tensor, count: int, maps: int) -> None:
    if not isinstance(levels, Tensor) or levels.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"levels must be a tensor of int64, got {getattr(levels, 'dtype', type(levels).__name__)}")
    if levels.shape != (count,):
        raise ValueError(f"levels must have one entry for each of {count} boxes, got shape {list(levels.shape)}")
    if _can_be_read(levels) and count and not 0 <= int(levels.min()) <= int(levels.max()) < maps:
        raise ValueError(f"levels must lie in [0, {maps}), got {int(levels.min())} to {int(levels.max())}")


def _widen(boxes: Tensor) -> Tensor:
    return boxes if boxes.dtype in (torch.float64, torch.float32) else boxes.float()


def _to_rois(input: Tensor, boxes: Boxes) -> Tensor:
    """Boxes as one tensor [K,5] of float32 or float64, the image in its first column."""
    if isinstance(boxes, Tensor):
        _check_boxes("boxes", boxes, 5, "[K, 5] (image, x1, y1, x2, y2), or a list of [L, 4]", input.device)
        rois = _widen(boxes)
        if _can_be_read(rois):
            _check_images(rois, input.shape[0])
        return rois
    if not isinstance(boxes, (list, tuple)):
        raise TypeError(f"boxes must be a tensor [K, 5] or a list of tensors [L, 4], got {type(boxes).__name__}")
    if len(boxes) != input.shape[0]:
        raise ValueError(f"boxes must have a tensor [L, 4] for each of {input.shape[0]} images, got {len(boxes)}")
    rows = [torch.zeros(0, 5, device=input.device)]
    for i, part in enumerate(boxes):
        _check_boxes(f"boxes[{i}]", part, 4, "[L, 4] (x1, y1, x2, y2)", input.device)
        wide = _widen(part)
        rows.append(torch.cat([wide.new_full((wide.shape[0], 1), i), wide], 1))
    return torch.cat(rows)


# --- one map --------------------------------------------------------------------------------------------------------


def prroi_pool(
    input: Tensor,
    boxes: Boxes,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    *,
    padding: Padding = "zeros",
    aligned: bool = False,
    degenerate: Degenerate = "zero",
) -> Tensor:
    r"""The exact mean of a bilinearly interpolated map over each bin of each box.

    .. math:: V_{pq} = \frac{1}{|B_{pq}|} \int_{B_{pq}} f(x, y) \,dx\,dy, \qquad
        f(x, y) = \sum_{ij} \max(0, 1 - |x - j|) \max(0, 1 - |y - i|) F_{ij}

    Nothing is sampled or rounded, so V is continuously differentiable in the box, too: gradients flow to `input` and
    to `boxes`, twice, in forward mode, under `torch.func` and in compiled code. Weights are computed in float64, and
    half precision is accumulated in float32.

    Args:
        input: the map [N, C, H, W], float64, float32, float16 or bfloat16; channels_last is read and written as it is.
        boxes: [K, 5] (image, x1, y1, x2, y2), or one [L, 4] for each image, in pixels of the image. Half precision is
            widened, never anything cast down.
        output_size: bins [PH, PW] of a box, or one number for both.
        spatial_scale: pixels of the map per pixel of the image (default 1).
        padding: what the map is outside: `"zeros"` (default, the official code) or `"border"`, its edge values.
        aligned: subtracts half a pixel from the coordinates on the map, so that pixel centres lie at integers plus a
            half in the image (default False, the official code).
        degenerate: what a box without width or height gives: `"zero"` (default, the official code), no output and no
            gradient; or `"limit"`, what smaller and smaller boxes tend to. There an inverted side is one without length
            at x1 or y1.

    Returns:
        [K, C, PH, PW] in the dtype and memory format of `input`. NaN where a coordinate is not finite, or where the
        image does not exist and this cannot be refused (on a GPU, in compiled or transformed code).

    Raises:
        TypeError: a dtype or type is not one of the above.
        ValueError: a shape, size, scale or option is not one of the above; an image does not exist.

    Example:
        >>> import iounet
        >>> map = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> iounet.ops.prroi_pool(map, torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]]), 2)
        tensor([[[[1.7500, 2.2500],
                  [2.7500, 3.2500]]]])

    Reference:
        Jiang et al., Acquisition of Localization Confidence for Accurate Object Detection, ECCV 2018, section 3.4.
    """
    ph, pw = _check_size(output_size)
    scale = _check_scale(spatial_scale)
    border = _check_choice("padding", padding, ("zeros", "border"))
    limit = _check_choice("degenerate", degenerate, ("zero", "limit"))
    _check_map("input", input)
    rois = _to_rois(input, boxes)
    if torch.onnx.is_in_onnx_export():
        return _reference.prroi_pool_traced(input, rois, ph, pw, scale, border, bool(aligned), limit)
    out: Tensor = _autograd.prroi_pool(input, rois, ph, pw, scale, border, bool(aligned), limit)
    return out


class PrRoIPool2d(nn.Module):
    """`prroi_pool` as a module: `forward(input, boxes)`.

    Args:
        output_size: bins [PH, PW] of a box, or one number for both.
        spatial_scale: pixels of the map per pixel of the image (default 1).
        padding, aligned, degenerate: see `iounet.ops.prroi_pool`.

    Raises:
        ValueError: as `iounet.ops.prroi_pool`, when the module is made.

    Example:
        >>> import iounet
        >>> pool = iounet.PrRoIPool2d(7, spatial_scale=0.25)
        >>> pool(torch.randn(1, 256, 50, 68), [torch.tensor([[10.0, 20.0, 120.0, 90.0]])]).shape
        torch.Size([1, 256, 7, 7])
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float = 1.0,
        *,
        padding: Padding = "zeros",
        aligned: bool = False,
        degenerate: Degenerate = "zero",
    ) -> None:
        super().__init__()
        _check_choice("padding", padding, ("zeros", "border"))
        _check_choice("degenerate", degenerate, ("zero", "limit"))
        self.output_size = _check_size(output_size)
        self.spatial_scale = _check_scale(spatial_scale)
        self.padding, self.aligned, self.degenerate = padding, aligned, degenerate

    def forward(self, input: Tensor, boxes: Boxes) -> Tensor:
        return prroi_pool(
            input,
            boxes,
            self.output_size,
            self.spatial_scale,
            padding=self.padding,
            aligned=self.aligned,
            degenerate=self.degenerate,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.output_size}, spatial_scale={self.spatial_scale}, padding={self.padding!r}, "
            f"aligned={self.aligned}, degenerate={self.degenerate!r}"
        )


# --- a pyramid ------------------------------------------------------------------------------------------------------


class MultiScalePrRoIPool(nn.Module):
    r"""Pools each box from one level of a feature pyramid; takes the place of torchvision's `MultiScaleRoIAlign`.

    .. math:: level = \lfloor k_0 + \log_2(\sqrt{wh} / s_0) + 10^{-6} \rfloor

    limited to the levels there are. The scale of a level is the power of two next to the ratio of its height to that of
    the largest image.

    Args:
        featmap_names: the maps to use among those passed to `forward`, which are ordered from fine to coarse.
        output_size: bins [PH, PW] of a box, or one number for both.
        sampling_ratio: ignored; it is there because torchvision's module has it.
        canonical_scale: s_0, the side of a box that belongs to level k_0, in pixels (default 224, of ImageNet's
            images, by the FPN paper).
        canonical_level: k_0 (default 4, by the FPN paper).

    Raises:
        ValueError: `output_size` is less than 1; no map has one of the names; `image_shapes` is empty; a level does not
            exist.

    Example:
        >>> import iounet
        >>> pool = iounet.MultiScalePrRoIPool(["0", "1"], output_size=7)
        >>> maps = {"0": torch.randn(1, 8, 64, 64), "1": torch.randn(1, 8, 32, 32)}
        >>> boxes = [torch.tensor([[10.0, 20.0, 120.0, 90.0], [0.0, 0.0, 250.0, 255.0]])]
        >>> pool(maps, boxes, [(256, 256)]).shape, pool.levels(maps, boxes, [(256, 256)])
        (torch.Size([2, 8, 7, 7]), tensor([0, 1]))

    Reference:
        Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, equation 1.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        sampling_ratio: int | None = None,
        *,
        canonical_scale: float = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.featmap_names = list(featmap_names)
        self.output_size = _check_size(output_size)
        self.sampling_ratio = sampling_ratio
        self.canonical_scale, self.canonical_level = canonical_scale, canonical_level

    def forward(
        self,
        x: Mapping[str, Tensor],
        boxes: Boxes,
        image_shapes: Sequence[tuple[int, int]],
        *,
        levels: Tensor | None = None,
    ) -> Tensor:
        """The pooled boxes [K, C, PH, PW], in order.

        Args:
            x: maps [N, C, H, W] by name.
            boxes: [K, 5] (image, x1, y1, x2, y2), or one [L, 4] for each image, in pixels of the image.
            image_shapes: (height, width) of each image, without padding.
            levels: int64 [K], the position of each box's map; by default that of `levels()`.
        """
        maps, scales = self._maps(x, image_shapes)
        rois, dtype = _to_rois(maps[0], boxes), maps[0].dtype
        if levels is None:
            levels = self._levels(rois, scales)
        else:
            _check_levels(levels, rois.shape[0], len(maps))
        if not _can_be_read(rois):  # each map gives zeros for the boxes of the others
            parts = [
                prroi_pool(map, rois.where((levels == i)[:, None], 0.0), self.output_size, scale).to(dtype)
                for i, (map, scale) in enumerate(zip(maps, scales, strict=True))
            ]
            return sum(parts[1:], parts[0])
        rows = [(levels == i).nonzero()[:, 0] for i in range(len(maps))]
        parts = [
            prroi_pool(map, rois[i], self.output_size, scale).to(dtype)
            for map, i, scale in zip(maps, rows, scales, strict=True)
        ]
        pooled = torch.cat(parts)[torch.cat(rows).argsort()]
        return pooled.contiguous(memory_format=_reference.memory_format(_reference.is_channels_last(maps[0])))

    def levels(self, x: Mapping[str, Tensor], boxes: Boxes, image_shapes: Sequence[tuple[int, int]]) -> Tensor:
        """The position of the map from which each box is pooled, int64 [K]."""
        maps, scales = self._maps(x, image_shapes)
        return self._levels(_to_rois(maps[0], boxes), scales)

    def _maps(
        self, x: Mapping[str, Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> tuple[list[Tensor], list[float]]:
        """The maps that are used, in the order in which they come, and their scales."""
        maps = {name: map for name, map in x.items() if name in self.featmap_names}
        if not maps:
            raise ValueError(f"x must have a map with one of the names {self.featmap_names}, got {list(x)}")
        for name, map in maps.items():
            _check_map(f"x[{name!r}]", map)
        if not image_shapes:
            raise ValueError("image_shapes must have the height and width of at least one image, got none")
        height = max(shape[0] for shape in image_shapes)
        return list(maps.values()), [2.0 ** round(math.log2(map.shape[2] / height)) for map in maps.values()]

    def _levels(self, rois: Tensor, scales: list[float]) -> Tensor:
        first, last = (int(-math.log2(scale)) for scale in (scales[0], scales[-1]))
        _, x1, y1, x2, y2 = rois.detach().unbind(1)
        size = ((x2 - x1) * (y2 - y1)).sqrt()
        level = (self.canonical_level + (size / self.canonical_scale).log2() + 1e-6).floor()
        return level.nan_to_num(first).clamp(first, last).to(torch.int64) - first

    def extra_repr(self) -> str:
        return f"{self.featmap_names}, {self.output_size}, sampling_ratio={self.sampling_ratio}"
