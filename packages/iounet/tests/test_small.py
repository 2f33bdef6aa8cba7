"""The small detector that trains from scratch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchvision")

from iounet import data, training
from iounet.detection import small_fasterrcnn


@pytest.fixture
def small():
    torch.manual_seed(0)
    return lambda **options: small_fasterrcnn(3, width=8, channels=16, hidden=32, min_size=96, max_size=96, **options)


def test_it_learns_to_find_shapes(small):
    model = small()
    history = training.fit(
        model, data.synthetic_scenes(8, 0, 96, 2), epochs=6, optimizer="adamw", lr=3e-3, schedule="constant", warmup=1
    )
    losses = [epoch["loss"] for epoch in history]
    assert losses[-1] < 0.8 * losses[0]


def test_boxes_are_in_pixels_of_the_image_that_was_given(small):
    model = small(box_score_thresh=0.0).eval()
    with torch.no_grad():
        found = model([torch.rand(3, 48, 64)])[0]
    assert len(found["boxes"]) > 0
    assert found["boxes"].amax(0)[2] <= 64
    assert found["boxes"].amax(0)[3] <= 48


def test_features_are_float32_under_autocast(small):
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        features = model.backbone(torch.rand(1, 3, 64, 96))
    assert {name: (x.dtype, x.shape[-1]) for name, x in features.items()} == {
        "0": (torch.float32, 12),
        "1": (torch.float32, 6),
        "2": (torch.float32, 3),
    }


def test_options_go_to_torchvisions_detector(small):
    model = small(box_nms_thresh=0.3, rpn_batch_size_per_image=16)
    assert model.roi_heads.nms_thresh == 0.3
    assert model.rpn.fg_bg_sampler.batch_size_per_image == 16
