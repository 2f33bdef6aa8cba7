"""Pooling as users call it: what is refused, forms of boxes, dtypes, modules, pyramids and the compiler."""

from __future__ import annotations

import copy
import math
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import iounet
from iounet import MultiScalePrRoIPool, PrRoIPool2d, _reference
from iounet.ops import prroi_pool

if TYPE_CHECKING:
    from collections.abc import Callable

INF, NAN = math.inf, math.nan
MAP = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(1))
BOXES = torch.tensor([[0, 3.2, 2.1, 30.4, 17.9], [1, -5.0, 3.0, 21.0, 40.0], [1, 10.5, 10.5, 11.0, 12.0]])
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


# --- what is refused ------------------------------------------------------------------------------------------------

INVALID: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "input must be a tensor, got list", {"input": [1.0]}),
    (TypeError, "input must have dtype .* got torch.int64", {"input": MAP.long()}),
    (TypeError, "input must have dtype .* got torch.complex64", {"input": MAP.to(torch.complex64)}),
    (ValueError, r"input must be \[N, C, H, W\] .* got shape \[3, 16, 20\]", {"input": MAP[0]}),
    (ValueError, r"input must be .* at least 1, got shape \[2, 3, 0, 20\]", {"input": MAP[:, :, :0]}),
    (ValueError, r"input must be .* at least 1, got shape \[2, 3, 16, 0\]", {"input": MAP[..., :0]}),
    (TypeError, "boxes must be a tensor .* or a list of tensors .* got ndarray", {"boxes": BOXES.numpy()}),
    (TypeError, "boxes must have dtype .* got torch.int64", {"boxes": BOXES.long()}),
    (ValueError, r"boxes must be \[K, 5\] .* got shape \[3, 4\]", {"boxes": BOXES[:, 1:]}),
    (ValueError, r"boxes must be \[K, 5\] .* got shape \[5\]", {"boxes": BOXES[0]}),
    (ValueError, r"boxes must have a tensor \[L, 4\] for each of 2 images, got 1", {"boxes": [BOXES[:, 1:]]}),
    (ValueError, r"boxes\[1\] must be \[L, 4\] .* got shape \[3, 5\]", {"boxes": [BOXES[:, 1:], BOXES]}),
    (TypeError, r"boxes\[0\] must be a tensor, got list", {"boxes": [[], BOXES[:, 1:]]}),
    (ValueError, "boxes must be on the device of the map, cpu, got meta", {"boxes": BOXES.to("meta")}),
    (ValueError, r"boxes\[1\] must be on the device", {"boxes": [BOXES[:, 1:], BOXES[:, 1:].to("meta")]}),
    (ValueError, "output_size must be .* at least 1, got 0", {"output_size": 0}),
    (ValueError, r"output_size must be .* at least 1, got \(7, -1\)", {"output_size": (7, -1)}),
    (ValueError, r"output_size must be .* got \(7, 7, 7\)", {"output_size": (7, 7, 7)}),
    (TypeError, "output_size must be an integer or a pair of integers, got 7.0", {"output_size": 7.0}),
    (TypeError, "output_size must be an integer or a pair of integers, got True", {"output_size": True}),
    (ValueError, "spatial_scale must be a finite positive number, got 0", {"spatial_scale": 0}),
    (ValueError, "spatial_scale must be a finite positive number, got -0.5", {"spatial_scale": -0.5}),
    (ValueError, "spatial_scale must be a finite positive number, got nan", {"spatial_scale": NAN}),
    (ValueError, "spatial_scale must be a finite positive number, got inf", {"spatial_scale": INF}),
    (ValueError, "padding must be 'zeros' or 'border', got 'reflect'", {"padding": "reflect"}),
    (ValueError, "degenerate must be 'zero' or 'limit', got 'nan'", {"degenerate": "nan"}),
]


@pytest.mark.parametrize(("error", "message", "change"), INVALID, ids=[message for _, message, _ in INVALID])
def test_bad_arguments_are_refused_in_a_sentence(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    arguments = {"input": MAP, "boxes": BOXES, "output_size": 7} | change
    with pytest.raises(error, match=message):
        prroi_pool(**arguments)


@pytest.mark.parametrize("image", [-1.0, 2.0, 0.5, NAN, INF])
def test_an_image_that_does_not_exist_is_refused_by_its_row(image: float) -> None:
    boxes = BOXES.clone().requires_grad_()
    with torch.no_grad():
        boxes[1, 0] = image
    with pytest.raises(ValueError, match=rf"boxes\[1, 0\] must be the integer index of one of 2 images, got {image:g}"):
        prroi_pool(MAP, boxes, 7)


@pytest.mark.parametrize("make", [PrRoIPool2d, lambda *args: MultiScalePrRoIPool(["0"], *args[:1])])
def test_modules_refuse_a_bad_size_when_they_are_made(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"output_size must be .* got 0"):
        make(0, 1.0)


@pytest.mark.parametrize("change", [{"spatial_scale": -1.0}, {"padding": "no"}, {"degenerate": "no"}])
def test_the_module_refuses_bad_options_when_it_is_made(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        PrRoIPool2d(7, **change)


# --- forms of boxes -------------------------------------------------------------------------------------------------


def test_a_list_of_boxes_is_the_tensor_with_their_images() -> None:
    parts = [BOXES[:1, 1:].clone().requires_grad_(), BOXES[1:, 1:].clone().requires_grad_()]
    actual = prroi_pool(MAP, parts, (3, 2), 0.5)
    assert torch.equal(actual, prroi_pool(MAP, BOXES, (3, 2), 0.5))
    actual.sum().backward()
    boxes = BOXES.clone().requires_grad_()
    prroi_pool(MAP, boxes, (3, 2), 0.5).sum().backward()
    assert boxes.grad is not None
    assert torch.equal(torch.cat([part.grad for part in parts if part.grad is not None]), boxes.grad[:, 1:])


def test_one_number_is_both_sizes() -> None:
    assert torch.equal(prroi_pool(MAP, BOXES, 3), prroi_pool(MAP, BOXES, [3, 3]))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("boxes", [torch.zeros(0, 5), [torch.zeros(0, 4)] * 2], ids=["tensor", "list"])
def test_no_boxes_give_an_empty_result_in_the_graph(boxes: Any, last: bool) -> None:
    memory_format = torch.channels_last if last else torch.contiguous_format
    map = MAP.clone(memory_format=memory_format).requires_grad_()
    out = prroi_pool(map, boxes, (3, 2))
    assert out.shape == (0, 3, 3, 2)
    out.sum().backward()
    assert map.grad is not None
    assert not map.grad.any()


@pytest.mark.parametrize("boxes", [torch.zeros(0, 5), []], ids=["tensor", "list"])
def test_no_images_give_an_empty_result(boxes: Any) -> None:
    assert prroi_pool(MAP[:0], boxes, 2).shape == (0, 3, 2, 2)


def test_arguments_are_left_as_they_were() -> None:
    map, boxes = MAP.clone(), BOXES.clone()
    prroi_pool(map, boxes, 3)
    assert torch.equal(map, MAP)
    assert torch.equal(boxes, BOXES)


# --- dtypes and memory formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("box_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_has_the_dtype_of_the_map_whatever_that_of_the_boxes(
    dtype: torch.dtype, box_dtype: torch.dtype
) -> None:
    boxes = BOXES.clone().to(box_dtype).requires_grad_()
    map = MAP.clone().to(dtype).requires_grad_()
    out = prroi_pool(map, boxes, 3, 0.5)
    out.sum().backward()
    assert out.dtype == dtype
    for x in (map, boxes):
        assert x.grad is not None
        assert x.grad.dtype == x.dtype
    exact = prroi_pool(MAP.to(dtype).double(), boxes.detach().double(), 3, 0.5)
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_a_list_of_half_precision_boxes_keeps_large_image_numbers() -> None:
    maps = torch.arange(300.0)[:, None, None, None].expand(300, 1, 2, 2)
    boxes = [torch.tensor([[0.0, 0, 1, 1]], dtype=torch.bfloat16)] * 300
    assert prroi_pool(maps, boxes, 1).flatten().tolist() == list(range(300))


def test_autocast_changes_nothing() -> None:
    boxes = (BOXES + torch.tensor([0, 1000.3, 0, 1000.3, 0])).requires_grad_()  # bfloat16 would move them by pixels
    map = torch.randn(2, 3, 16, 520, generator=torch.Generator().manual_seed(2)).requires_grad_()
    expected = prroi_pool(map, boxes, 3, 0.5)
    cot = torch.ones_like(expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = prroi_pool(map, boxes, 3, 0.5)
        grads = torch.autograd.grad(actual, (map, boxes), cot)
    assert torch.equal(actual, expected)
    for x, y in zip(grads, torch.autograd.grad(expected, (map, boxes), cot), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("change", "last"),
    [
        (lambda x: x, False),
        (lambda x: x.contiguous(memory_format=torch.channels_last), True),
        (lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), False),
        (lambda x: torch.stack([x, x], 4)[..., 0], False),
        (lambda x: x[:, :1].expand(2, 3, 16, 20), False),
    ],
    ids=["contiguous", "channels_last", "transposed", "strided", "expanded"],
)
def test_every_layout_is_read_right_and_results_follow_it(change: Callable[[Tensor], Tensor], last: bool) -> None:
    map = change(MAP)
    out = prroi_pool(map, BOXES, (3, 2), 0.5)
    expected = _reference.prroi_pool(map.double(), BOXES, 3, 2, 0.5, False, False, False)
    torch.testing.assert_close(out, expected.float(), rtol=0, atol=1e-6)
    assert out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


# --- the module -----------------------------------------------------------------------------------------------------


def test_the_module_is_the_function_with_its_options() -> None:
    options: dict[str, Any] = {"padding": "border", "aligned": True, "degenerate": "limit"}
    pool = PrRoIPool2d((3, 2), 0.5, **options)
    expected = prroi_pool(MAP, BOXES, (3, 2), 0.5, **options)
    for module in (pool, copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert torch.equal(module(MAP, BOXES), expected)
    assert repr(pool) == ("PrRoIPool2d((3, 2), spatial_scale=0.5, padding='border', aligned=True, degenerate='limit')")
    assert not pool.state_dict()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.pool = nn.Conv2d(3, 4, 3, padding=1), PrRoIPool2d(3, 0.5)
        self.after = nn.Linear(36, 2)

    def forward(self, map: Tensor, first: Tensor, second: Tensor) -> Tensor:
        out: Tensor = self.after(self.pool(self.before(map), [first, second]).flatten(1))
        return out


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_model_around_the_module_compiles_whole(backend: str) -> None:
    torch.manual_seed(1)
    model = Small()
    parts = BOXES[:1, 1:].clone().requires_grad_(), BOXES[1:, 1:].clone().requires_grad_()
    expected = torch.autograd.grad(model(MAP, *parts).square().sum(), [*model.parameters(), *parts])
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    actual = torch.autograd.grad(compiled(MAP, *parts).square().sum(), [*model.parameters(), *parts])
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_compiled_code_gives_nan_for_an_image_that_does_not_exist() -> None:
    boxes = torch.cat([BOXES, BOXES + torch.tensor([2.0, 0, 0, 0, 0])])
    compiled = torch.compile(lambda map, boxes: prroi_pool(map, boxes, 3), fullgraph=True, backend="aot_eager")
    out = compiled(MAP, boxes)
    assert out.isnan().flatten(1).all(1).tolist() == [False] * 3 + [True] * 3


# --- pyramids -------------------------------------------------------------------------------------------------------

SHAPES = [(250, 320), (256, 300)]


def pyramid(last: bool = False, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = {str(i): torch.randn(2, 3, 64 >> i, 80 >> i, generator=generator) for i in range(4)}
    memory_format = torch.channels_last if last else torch.contiguous_format
    return {name: map.contiguous(memory_format=memory_format).requires_grad_() for name, map in maps.items()}


def boxes_of_all_sizes() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    side = torch.exp(torch.rand(40, 2, generator=generator) * 5 + 2)
    corner = torch.rand(40, 2, generator=generator) * 200
    boxes = torch.cat([torch.arange(40)[:, None] % 2, corner, corner + side], 1)
    boxes[7, 3:] = boxes[7, 1:3]  # no size
    boxes[8, 3] = boxes[8, 1] - 4  # a negative area
    boxes[9, 2] = NAN
    boxes[10, 3] = 1e30
    return boxes


def test_each_box_is_pooled_from_its_level() -> None:
    pool, maps, boxes = MultiScalePrRoIPool(["0", "1", "2", "3"], (3, 2), 2), pyramid(), boxes_of_all_sizes()
    levels = pool.levels(maps, boxes, SHAPES)
    assert levels.dtype == torch.int64
    assert sorted(set(levels.tolist())) == [0, 1, 2, 3]
    actual = pool(maps, boxes, SHAPES)
    for k, level in enumerate(levels.tolist()):
        scale = 2.0 ** -(level + 2)
        expected = prroi_pool(maps[str(level)], boxes[k : k + 1], (3, 2), scale)[0]
        torch.testing.assert_close(actual[k], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (447, 2), (448, 3), (1e4, 3)]
)
def test_levels_follow_the_pyramid_paper(side: float, level: int) -> None:
    pool = MultiScalePrRoIPool(["0", "1", "2", "3"], 7)
    box = torch.tensor([[10.0, 10.0, 10 + side, 10 + side]])
    assert pool.levels(pyramid(), [box, box], SHAPES).tolist() == [level] * 2
    higher = MultiScalePrRoIPool(["0", "1", "2", "3"], 7, canonical_level=5)
    assert higher.levels(pyramid(), [box, box], SHAPES).tolist() == [min(level + 1, 3) if side >= 56 else 0] * 2


def test_given_levels_take_the_place_of_the_rule() -> None:
    pool, maps, boxes = MultiScalePrRoIPool(["0", "1", "2", "3"], 3), pyramid(), boxes_of_all_sizes()
    levels = torch.arange(40) % 4
    actual = pool(maps, boxes, SHAPES, levels=levels)
    for level in range(4):
        expected = prroi_pool(maps[str(level)], boxes[level::4], 3, 2.0 ** -(level + 2))
        torch.testing.assert_close(actual[level::4], expected, rtol=0, atol=0, equal_nan=True)


def test_only_named_maps_are_used() -> None:
    maps = pyramid()
    pool = MultiScalePrRoIPool(["1"], 3)
    boxes = boxes_of_all_sizes()
    assert pool.levels(maps, boxes, SHAPES).tolist() == [0] * 40
    torch.testing.assert_close(
        pool(maps, boxes, SHAPES), prroi_pool(maps["1"], boxes, 3, 0.125), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_the_compiled_form_without_choices_is_the_same_function(last: bool) -> None:
    pool, boxes = MultiScalePrRoIPool(["0", "1", "2", "3"], 3), boxes_of_all_sizes()
    boxes = torch.cat([boxes[:9], boxes[10:]])
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    results = []
    for function in (pool, compiled):
        maps, corners = pyramid(last), boxes.clone().requires_grad_()
        out = function(maps, corners, SHAPES)
        assert out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        results.append([out, *torch.autograd.grad(out.square().sum(), [*maps.values(), corners])])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-4)


def test_maps_without_boxes_are_in_the_graph() -> None:
    """Data-parallel training waits for the gradient of every parameter."""
    maps = pyramid()
    boxes = torch.tensor([[0, 1.0, 1.0, 30.0, 30.0]])
    MultiScalePrRoIPool(list(maps), 3)(maps, boxes, SHAPES).sum().backward()
    assert [bool(map.grad is not None and map.grad.any()) for map in maps.values()] == [True, False, False, False]
    assert all(map.grad is not None for map in maps.values())
    assert MultiScalePrRoIPool(list(maps), 3)(maps, boxes[:0], SHAPES).requires_grad


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"x must have a map with one of the names \['a'\]", {"names": ["a"]}),
        (ValueError, "image_shapes must have .* at least one image", {"image_shapes": []}),
        (ValueError, r"x\['0'\] must be \[N, C, H, W\]", {"x": {"0": MAP[0]}}),
        (
            ValueError,
            r"levels must have one entry for each of 40 boxes, got shape \[3\]",
            {"levels": torch.zeros(3).long()},
        ),
        (ValueError, r"levels must lie in \[0, 4\), got 0 to 4", {"levels": torch.arange(40) % 5}),
        (TypeError, "levels must be a tensor of int64, got torch.float32", {"levels": torch.zeros(40)}),
        (TypeError, "levels must be a tensor of int64, got list", {"levels": [0] * 40}),
    ],
)
def test_a_pyramid_refuses_what_does_not_fit(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"x": pyramid(), "boxes": boxes_of_all_sizes(), "image_shapes": SHAPES} | change
    pool = MultiScalePrRoIPool(arguments.pop("names", ["0", "1", "2", "3"]), 3)
    with pytest.raises(error, match=message):
        pool(**arguments)


def test_the_pyramid_tells_its_options() -> None:
    assert repr(MultiScalePrRoIPool(["0"], 7)) == "MultiScalePrRoIPool(['0'], (7, 7), sampling_ratio=None)"
    assert iounet.MultiScalePrRoIPool is MultiScalePrRoIPool
