"""Derivatives of the pooling: all modes against finite differences and against each other, and what is refused."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import iounet
from iounet import _autograd, _ops

if TYPE_CHECKING:
    from collections.abc import Callable

# torch loads its forward mode with its own torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")

# Boxes inside, across two sides, within one cell, over the whole map, and within one column of cells.
BOXES = torch.tensor(
    [
        [0, 1.3, 2.2, 7.9, 6.1],
        [1, -3.3, -2.1, 4.7, 12.3],
        [1, 2.1, 3.3, 2.4, 3.6],
        [0, -5.2, -6.1, 16.7, 15.3],
        [1, 4.15, 1.25, 4.85, 7.75],
    ],
    dtype=torch.float64,
)
OPTIONS: dict[str, Any] = {
    "official": {},
    "border": {"padding": "border"},
    "aligned": {"aligned": True},
    "limit": {"degenerate": "limit"},
    "border, aligned, limit": {"padding": "border", "aligned": True, "degenerate": "limit"},
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
ARGS = (0.7, False, False, False)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_images(corners: Tensor) -> Tensor:
    return torch.cat([BOXES[:, :1], corners], 1)


def pool(map: Tensor, corners: Tensor, **options: Any) -> Tensor:
    return iounet.ops.prroi_pool(map, with_images(corners), (3, 2), 0.7, **options)


@pytest.fixture
def map() -> Tensor:
    return numbers(2, 2, 6, 7).requires_grad_()


@pytest.fixture
def corners() -> Tensor:
    return BOXES[:, 1:].clone().requires_grad_()


# --- against finite differences -------------------------------------------------------------------------------------


@EVERY_OPTION
def test_first_derivatives(map: Tensor, corners: Tensor, options: dict[str, Any]) -> None:
    gradcheck(
        lambda map, corners: pool(map, corners, **options),
        (map, corners),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@EVERY_OPTION
def test_second_derivatives(map: Tensor, corners: Tensor, options: dict[str, Any]) -> None:
    gradgradcheck(
        lambda map, corners: pool(map, corners, **options), (map, corners), check_fwd_over_rev=True, fast_mode=True
    )


def test_derivatives_of_the_gradient_of_the_map(corners: Tensor) -> None:
    grad = numbers(len(corners), 2, 3, 2, seed=2).requires_grad_()
    for last in (False, True):
        gradcheck(
            lambda grad, corners, last=last: _autograd.grad_input(grad, with_images(corners), 2, 6, 7, last, *ARGS),
            (grad, corners),
            check_forward_ad=True,
            fast_mode=True,
        )


def test_derivatives_of_the_gradient_of_the_boxes(map: Tensor, corners: Tensor) -> None:
    gradcheck(
        lambda grad, map, corners: _autograd.grad_boxes(grad, map, with_images(corners), *ARGS),
        (numbers(len(corners), 2, 3, 2, seed=2).requires_grad_(), map, corners),
        check_forward_ad=True,
        fast_mode=True,
    )


def test_derivatives_of_the_derivative_along_the_boxes(map: Tensor, corners: Tensor) -> None:
    gradcheck(
        lambda map, corners, tangent: _autograd.jvp(map, with_images(corners), with_images(tangent), 3, 2, *ARGS),
        (map, corners, numbers(*corners.shape, seed=2).requires_grad_()),
        fast_mode=True,
    )


# --- against each other ---------------------------------------------------------------------------------------------


@EVERY_OPTION
def test_forward_mode_is_the_transpose_of_reverse_mode(map: Tensor, corners: Tensor, options: dict[str, Any]) -> None:
    moves = numbers(*map.shape, seed=2), numbers(*corners.shape, seed=3)
    for which in ((True, True), (True, False), (False, True)):
        primals = [x.detach() for x in (map, corners)]
        tangents = [move if on else torch.zeros_like(move) for move, on in zip(moves, which, strict=True)]
        out, along = torch.func.jvp(lambda *x: pool(*x, **options), tuple(primals), tuple(tangents))
        assert along.norm() > 0.1
        cot = numbers(*out.shape, seed=4)
        grads = torch.autograd.grad(pool(map, corners, **options), (map, corners), cot)
        expected = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
        torch.testing.assert_close((cot * along).sum(), expected, rtol=1e-12, atol=1e-12)


def test_four_ways_to_a_hessian_agree(map: Tensor, corners: Tensor) -> None:
    def loss(corners: Tensor) -> Tensor:
        return (pool(map.detach(), corners) ** 2).sum()

    expected = torch.autograd.functional.hessian(loss, corners.detach())
    assert expected.norm() > 0.1
    for hessian in (
        torch.func.hessian(loss),
        torch.func.jacrev(torch.func.jacrev(loss)),
        torch.func.jacrev(torch.func.jacfwd(loss)),
    ):
        torch.testing.assert_close(hessian(corners.detach()), expected, rtol=1e-12, atol=1e-12)


def test_a_gradient_that_nobody_needs_is_not_computed(monkeypatch: pytest.MonkeyPatch, map: Tensor) -> None:
    def unexpected(*args: Any) -> None:
        pytest.fail("the gradient of the boxes was computed")

    monkeypatch.setattr(_autograd, "grad_boxes", unexpected)
    pool(map, BOXES[:, 1:]).sum().backward()
    assert map.grad is not None


def test_the_image_of_a_box_has_gradient_zero(map: Tensor) -> None:
    boxes = BOXES.clone().requires_grad_()
    iounet.ops.prroi_pool(map, boxes, 3).sum().backward()
    assert boxes.grad is not None
    assert boxes.grad[:, 0].tolist() == [0] * len(boxes)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_gradients_have_the_memory_format_of_the_map(last: bool) -> None:
    memory_format = torch.channels_last if last else torch.contiguous_format
    map = numbers(2, 3, 6, 7).contiguous(memory_format=memory_format).requires_grad_()
    out = pool(map, BOXES[:, 1:])
    (by_map,) = torch.autograd.grad(out.sum(), map)  # an expanded gradient
    for x in (out, by_map):
        assert x.is_contiguous(memory_format=memory_format)
        assert x.is_contiguous() != last


def test_a_result_that_is_kept_after_the_backward_pass_keeps_no_map(map: Tensor, corners: Tensor) -> None:
    computed = map * 2
    alive = weakref.ref(computed)
    out = pool(computed, corners)
    out.sum().backward()
    del computed
    assert out.requires_grad
    assert alive() is None


# --- vmap -----------------------------------------------------------------------------------------------------------


def gradients(map: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    return torch.func.grad(lambda *x: (pool(*x) ** 2).sum(), argnums=(0, 1))(map, corners)


def second(map: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    return torch.func.grad(lambda *x: sum((g**2).sum() for g in gradients(*x)), argnums=(0, 1))(map, corners)


def along(map: Tensor, corners: Tensor) -> Tensor:
    return torch.func.jvp(pool, (map, corners), (map.flip(2), corners.flip(1)))[1]


@pytest.mark.parametrize("function", [pool, gradients, second, along])
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (2, 1)])
def test_a_batch_of_calls_is_each_of_them(function: Callable[..., Any], in_dims: tuple[int | None, int | None]) -> None:
    maps, batch = numbers(4, 2, 2, 6, 7), BOXES[:, 1:] + 0.1 * numbers(4, *BOXES[:, 1:].shape, seed=2)
    given = [x[0] if dim is None else x.movedim(0, dim) for x, dim in zip((maps, batch), in_dims, strict=True)]
    actual = torch.func.vmap(function, in_dims=in_dims)(*given)
    for i in range(4):
        args = [x[0 if dim is None else i] for x, dim in zip((maps, batch), in_dims, strict=True)]
        expected = function(*args)
        for x, y in zip(actual, expected, strict=True) if isinstance(expected, tuple) else ((actual, expected),):
            torch.testing.assert_close(x[i], y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("image", [-1.0, 2.0, 0.5])
def test_a_box_of_a_batch_never_reads_the_map_of_another_call(image: float) -> None:
    boxes = torch.tensor([[[image, 1, 1, 4, 4], [1, 1, 1, 4, 4]]], dtype=torch.float64).expand(3, 2, 5)
    out = torch.func.vmap(lambda map, boxes: iounet.ops.prroi_pool(map, boxes, 2))(numbers(3, 2, 1, 6, 7), boxes)
    assert out.isnan().flatten(2).all(2).tolist() == [[True, False]] * 3


def test_a_batch_without_boxes() -> None:
    out = torch.func.vmap(lambda map, boxes: iounet.ops.prroi_pool(map, boxes, 2))(
        numbers(3, 2, 1, 6, 7), torch.zeros(3, 0, 5)
    )
    assert out.shape == (3, 0, 1, 2, 2)


# --- refused --------------------------------------------------------------------------------------------------------


def test_third_derivatives_are_refused_loudly(map: Tensor, corners: Tensor) -> None:
    (first,) = torch.autograd.grad(pool(map, corners).pow(3).sum(), corners, create_graph=True)
    (twice,) = torch.autograd.grad(first.pow(2).sum(), corners, create_graph=True)
    with pytest.raises(NotImplementedError, match="no third derivatives"):
        torch.autograd.grad(twice.pow(2).sum(), corners)


def test_forward_over_forward_mode_is_refused_loudly(map: Tensor) -> None:
    def once(map: Tensor, corners: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: pool(map, x), (corners,), (corners,))[1]

    def twice(map: Tensor, corners: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: once(map, x), (corners,), (corners,))[1]

    for function in (twice, torch.compile(twice, fullgraph=True, backend="aot_eager")):
        with pytest.raises((NotImplementedError, torch._dynamo.exc.Unsupported), match="forward mode over forward"):
            function(map.detach(), BOXES[:, 1:])


# --- the operators in torch -----------------------------------------------------------------------------------------


def calls(last: bool) -> dict[str, tuple[Any, ...]]:
    map = numbers(2, 3, 6, 7)
    map = (map.contiguous(memory_format=torch.channels_last) if last else map).requires_grad_()
    boxes, grad = BOXES.clone().requires_grad_(), numbers(len(BOXES), 3, 3, 2).requires_grad_()
    tangent = numbers(*BOXES.shape, seed=3)
    return {
        "prroi_pool": (map, boxes, 3, 2, *ARGS),
        "prroi_pool_grad_input": (grad, boxes, 2, 6, 7, last, *ARGS),
        "prroi_pool_grad_boxes": (grad, map, boxes, *ARGS),
        "prroi_pool_jvp": (map, boxes, tangent, 3, 2, *ARGS),
        # It has no derivatives, which opcheck would take.
        "prroi_pool_grad_boxes_backward": (tangent, grad.detach(), map.detach(), boxes.detach(), *ARGS),
    }


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", calls(False))
def test_opcheck(name: str, last: bool) -> None:
    torch.library.opcheck(getattr(_ops, name), calls(last)[name])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", calls(False))
def test_meta_tensors_have_the_shape_dtype_and_format_of_results(name: str, last: bool) -> None:
    args = [x.detach().float() if isinstance(x, Tensor) else x for x in calls(last)[name]]
    real = getattr(_ops, name)(*args)
    meta = getattr(_ops, name)(*(x.to("meta") if isinstance(x, Tensor) else x for x in args))
    for x, y in zip(real, meta, strict=True) if isinstance(real, tuple) else ((real, meta),):
        assert (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride())


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_whole_with_its_gradients(map: Tensor, corners: Tensor, dynamic: bool) -> None:
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected = pool(map, corners)
    cot = numbers(*expected.shape, seed=2)
    actual = compiled(map, corners)
    assert torch.equal(actual, expected)
    for x, y in zip(
        torch.autograd.grad(actual, (map, corners), cot),
        torch.autograd.grad(expected, (map, corners), cot),
        strict=True,
    ):
        assert torch.equal(x, y)


def test_compiled_forward_mode_is_not_silently_zero(map: Tensor) -> None:
    def along(map: Tensor, corners: Tensor, move: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: pool(map, x), (corners,), (move,))[1]

    args = map.detach(), BOXES[:, 1:], numbers(len(BOXES), 4, seed=2)
    expected = along(*args)
    assert expected.norm() > 0.1
    torch.testing.assert_close(torch.compile(along, fullgraph=True, backend="aot_eager")(*args), expected)


@pytest.mark.parametrize("strict", [False, True])
def test_exported(map: Tensor, strict: bool) -> None:
    module = iounet.PrRoIPool2d((3, 2), 0.7)
    boxes = {0: torch.export.Dim("boxes", min=0, max=1000)}
    program = torch.export.export(module, (map.detach(), BOXES), dynamic_shapes=({}, boxes), strict=strict)
    for given in (BOXES, BOXES[:2], torch.cat([BOXES, BOXES])):
        assert torch.equal(program.module()(map.detach(), given), module(map.detach(), given))
