"""Export to ONNX: standard operators only, run by onnxruntime, for any number of boxes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from iounet import MultiScalePrRoIPool, PrRoIPool2d

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("onnx", reason="onnx is not installed (group test)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (group test)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (group test)")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporter

MAP = torch.randn(2, 8, 20, 24, generator=torch.Generator().manual_seed(1))
BOXES = torch.tensor(
    [
        [0, 3.2, 2.1, 30.4, 17.9],
        [1, -15.0, 13.0, 71.0, 140.0],
        [1, 10.5, 10.5, 11.0, 12.0],
        [0, 20.0, 20.0, 20.0, 40.0],  # no width
        [1, 20.0, 20.0, 10.0, 5.0],  # inverted
        [0, 1.0, float("nan"), 5.0, 5.0],
        [2, 1.0, 1.0, 5.0, 5.0],  # no such image
        [1, -1e30, 3.0, 1e30, 9.0],
    ]
)
COUNT = torch.export.Dim("boxes", min=0, max=10_000)


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = MultiScalePrRoIPool(["0", "1"], 3)

    def forward(self, fine: Tensor, coarse: Tensor, first: Tensor, second: Tensor) -> Tensor:
        out: Tensor = self.pool({"0": fine, "1": coarse}, [first, second], [(80, 96), (80, 90)])
        return out


def exported(module: nn.Module, args: tuple[Tensor, ...], dynamic: tuple[Any, ...]) -> Callable[..., np.ndarray]:
    program = torch.onnx.export(module.eval(), args, dynamic_shapes=dynamic, dynamo=True, verbose=False)
    assert program is not None
    model = program.model_proto
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *args: session.run(None, dict(zip(names, (x.numpy() for x in args), strict=True)))[0]


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": "border", "aligned": True, "degenerate": "limit"}],
    ids=["official", "border, aligned, limit"],
)
def test_one_map(options: dict[str, Any]) -> None:
    pool = PrRoIPool2d((4, 3), 0.25, **options)
    run = exported(pool, (MAP, BOXES[:3]), ({}, {0: COUNT}))
    good = torch.cat([BOXES[:5], BOXES[7:]])
    for boxes in (good, good[:1], good[:0], torch.cat([good, good])):
        actual = run(MAP, boxes)
        expected = pool(MAP, boxes).numpy()
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    nan = np.isnan(run(MAP, BOXES)).reshape(len(BOXES), -1)
    assert nan.all(1).tolist() == nan.any(1).tolist() == [False] * 5 + [True] * 2 + [False]


def test_a_pyramid_and_lists_of_boxes() -> None:
    coarse = torch.randn(2, 8, 10, 12, generator=torch.Generator().manual_seed(2))
    large = torch.tensor([[3.0, 5.0, 400.0, 500.0]])
    first, second = torch.cat([BOXES[:3, 1:], large]), torch.cat([large, BOXES[:2, 1:]])
    module = Pyramid()
    run = exported(module, (MAP, coarse, first, second), ({}, {}, {0: COUNT}, {0: torch.export.Dim("more", max=99)}))
    for args in ((first, second), (second, first), (second[:2], first)):
        np.testing.assert_allclose(run(MAP, coarse, *args), module(MAP, coarse, *args).numpy(), rtol=0, atol=1e-5)
