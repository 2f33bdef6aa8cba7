"""PrRoI pooling under the names and signatures of the official code and of mmcv, for projects that use theirs.

The official code: `PrRoIPool2D`, `prroi_pool2d`. mmcv: `PrRoIPool`, `prroi_pool`. Both take boxes [K, 5] (image, x1,
y1, x2, y2) in pixels of the image; here lists of [L, 4] are taken as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ._pooling import prroi_pool as _prroi_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ._pooling import Boxes

__all__ = ["PrRoIPool", "PrRoIPool2D", "prroi_pool", "prroi_pool2d"]


def prroi_pool2d(features: Tensor, rois: Boxes, pooled_height: int, pooled_width: int, spatial_scale: float) -> Tensor:
    """`iounet.ops.prroi_pool` with the signature of the official function.

    Example:
        >>> import torch
        >>> import iounet
        >>> map = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> iounet.compat.prroi_pool2d(map, torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]]), 1, 2, 1.0)
        tensor([[[[2.2500, 2.7500]]]])
    """
    return _prroi_pool(features, rois, (pooled_height, pooled_width), spatial_scale)


def prroi_pool(features: Tensor, rois: Boxes, output_size: int | Sequence[int], spatial_scale: float = 1.0) -> Tensor:
    """`iounet.ops.prroi_pool` with the signature of mmcv's function.

    Example:
        >>> import torch
        >>> import iounet
        >>> map = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> iounet.compat.prroi_pool(map, torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]]), (1, 2))
        tensor([[[[2.2500, 2.7500]]]])
    """
    return _prroi_pool(features, rois, output_size, spatial_scale)


class PrRoIPool2D(nn.Module):
    """`prroi_pool2d` as a module: `forward(features, rois)`.

    Args:
        pooled_height, pooled_width: bins of a box.
        spatial_scale: pixels of the map per pixel of the image.

    Example:
        >>> import torch
        >>> import iounet
        >>> pool = iounet.compat.PrRoIPool2D(7, 7, 0.25)
        >>> pool(torch.randn(1, 8, 32, 32), torch.tensor([[0.0, 10.0, 20.0, 120.0, 90.0]])).shape
        torch.Size([1, 8, 7, 7])
    """

    def __init__(self, pooled_height: int, pooled_width: int, spatial_scale: float) -> None:
        super().__init__()
        self.pooled_height, self.pooled_width, self.spatial_scale = pooled_height, pooled_width, spatial_scale

    def forward(self, features: Tensor, rois: Boxes) -> Tensor:
        return prroi_pool2d(features, rois, self.pooled_height, self.pooled_width, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"{self.pooled_height}, {self.pooled_width}, spatial_scale={self.spatial_scale}"


class PrRoIPool(nn.Module):
    """mmcv's `prroi_pool` as a module: `forward(features, rois)`.

    Args:
        output_size: bins [PH, PW] of a box, or one number for both.
        spatial_scale: pixels of the map per pixel of the image (default 1, of mmcv).

    Example:
        >>> import torch
        >>> import iounet
        >>> pool = iounet.compat.PrRoIPool((7, 7), spatial_scale=0.25)
        >>> pool(torch.randn(1, 8, 32, 32), torch.tensor([[0.0, 10.0, 20.0, 120.0, 90.0]])).shape
        torch.Size([1, 8, 7, 7])
    """

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale

    def forward(self, features: Tensor, rois: Boxes) -> Tensor:
        return prroi_pool(features, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"{self.output_size}, spatial_scale={self.spatial_scale}"
