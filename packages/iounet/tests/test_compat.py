"""The names and signatures of the official code and of mmcv."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from iounet import compat
from iounet.ops import prroi_pool

MAP = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(1))
ROIS = torch.tensor([[0, 3.2, 2.1, 30.4, 17.9], [1, -5.0, 3.0, 21.0, 40.0]])
SIGNATURES = {
    compat.prroi_pool2d: ["features", "rois", "pooled_height", "pooled_width", "spatial_scale"],
    compat.PrRoIPool2D: ["pooled_height", "pooled_width", "spatial_scale"],
    compat.PrRoIPool2D.forward: ["self", "features", "rois"],
    compat.prroi_pool: ["features", "rois", "output_size", "spatial_scale"],
    compat.PrRoIPool: ["output_size", "spatial_scale"],
    compat.PrRoIPool.forward: ["self", "features", "rois"],
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__qualname__)
def test_arguments_have_the_names_and_order_of_the_originals(function: Any) -> None:
    assert list(inspect.signature(function).parameters) == SIGNATURES[function]


def test_every_form_is_the_same_pooling() -> None:
    expected = prroi_pool(MAP, ROIS, (3, 2), 0.5)
    for actual in (
        compat.prroi_pool2d(MAP, ROIS, 3, 2, 0.5),
        compat.PrRoIPool2D(3, 2, 0.5)(MAP, ROIS),
        compat.prroi_pool(MAP, ROIS, (3, 2), 0.5),
        compat.PrRoIPool((3, 2), 0.5)(MAP, ROIS),
    ):
        assert torch.equal(actual, expected)


def test_the_scale_of_mmcv_is_one_by_default() -> None:
    expected = prroi_pool(MAP, ROIS, 3, 1.0)
    assert torch.equal(compat.prroi_pool(MAP, ROIS, 3), expected)
    assert torch.equal(compat.PrRoIPool(3)(MAP, ROIS), expected)


@pytest.mark.parametrize("pool", [compat.PrRoIPool2D(3, 3, 0.5), compat.PrRoIPool(3, 0.5)], ids=["official", "mmcv"])
def test_gradients_reach_features_and_rois(pool: nn.Module) -> None:
    features, rois = MAP.clone().requires_grad_(), ROIS.clone().requires_grad_()
    pool(features, rois).square().sum().backward()
    for x in (features, rois):
        assert x.grad is not None
        assert x.grad.abs().sum() > 0


def test_modules_tell_their_options() -> None:
    assert repr(compat.PrRoIPool2D(3, 2, 0.5)) == "PrRoIPool2D(3, 2, spatial_scale=0.5)"
    assert repr(compat.PrRoIPool((3, 2))) == "PrRoIPool((3, 2), spatial_scale=1.0)"
