"""The C++ kernels of pooling against the reference: precision, memory formats, odd shapes, bad boxes, threads."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from iounet import _ops, _reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = ("prroi_pool", "prroi_pool_grad_input", "prroi_pool_grad_boxes")
BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
EVERY_DTYPE = pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16, FLOAT16])
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
EVERY_FORMAT = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
EVERY_OPERATOR = pytest.mark.parametrize("name", NAMES)
OPTIONS = {
    "default": (False, False, False),
    "border": (True, False, False),
    "aligned": (False, True, False),
    "limit": (False, False, True),
    "all": (True, True, True),
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)  # border, aligned, limit


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if "cpu" not in _ops.KERNELS["prroi_pool"]:
        pytest.skip("the package was built without its C++ kernels")


# --- calls ----------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """What all three operators need."""

    input: Tensor
    boxes: Tensor
    grad: Tensor
    scale: float = 0.5
    options: tuple[bool, bool, bool] = (False, False, False)

    def to(self, dtype: torch.dtype) -> Call:
        return self._replace(input=self.input.to(dtype), grad=self.grad.to(dtype))

    def run(self, module: Any, name: str) -> Tensor:
        """The operator of `_ops` (the kernel) or of `_reference`."""
        n, _, h, w = self.input.shape
        arguments = {
            "prroi_pool": (self.input, self.boxes, *self.grad.shape[2:]),
            "prroi_pool_grad_input": (self.grad, self.boxes, n, h, w, _reference.is_channels_last(self.input)),
            "prroi_pool_grad_boxes": (self.grad, self.input, self.boxes),
        }[name]
        result: Tensor = getattr(module, name)(*arguments, self.scale, *self.options)
        return result


def make_call(
    *size: int,
    bins: tuple[int, int] = (7, 7),
    boxes: int = 24,
    sides: tuple[float, float] = (1e-3, 60),
    dtype: torch.dtype = FLOAT32,
    memory_format: torch.memory_format = torch.contiguous_format,
    options: tuple[bool, bool, bool] = (False, False, False),
    seed: int = 0,
) -> Call:
    """Boxes inside, across the border and outside of the map, of sides in log-uniform proportion, in float64."""
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = size
    low, high = (math.log(side) for side in sides)
    half = torch.exp(low + (high - low) * torch.rand(boxes, 2, generator=generator, dtype=FLOAT64)) / 2
    room = torch.tensor([w / 0.5 + 6, h / 0.5 + 6], dtype=FLOAT64)
    centre = torch.rand(boxes, 2, generator=generator, dtype=FLOAT64) * room - 3
    image = torch.randint(n, (boxes, 1), generator=generator)
    return Call(
        torch.randn(*size, generator=generator).to(dtype, memory_format=memory_format),
        torch.cat([image, centre - half, centre + half], 1),
        torch.randn(boxes, c, *bins, generator=generator).to(dtype, memory_format=memory_format),
        options=options,
    )


def with_odd_boxes(call: Call) -> Call:
    """Two boxes each without width, height and both, inverted, huge, beyond the map, and with edges on pixels."""
    boxes = call.boxes.clone()
    boxes[0, 3], boxes[1, 4] = boxes[0, 1], boxes[1, 2]
    boxes[2, 3:] = boxes[2, 1:3]
    boxes[3, 3:] = boxes[3, 1:3] - 5
    boxes[4, 1] += 100
    boxes[5, 1:] = torch.tensor([-1e30, -1e30, 1e30, 1e30])
    boxes[6, 1:] = torch.tensor([1e30, -3, 1.5e30, 7])
    boxes[7, 1:] = torch.tensor([-1e30, 2, 3, 1e30])
    boxes[8, 1:] = torch.tensor([-70, -60, -50, -40])
    boxes[9, 1:] = torch.tensor([2, 4, 16, 18])
    boxes[10, 1:] = torch.tensor([-2, -2, -2, -2])  # pixel -1
    boxes[11, 1:] = torch.tensor([0, 0, 0, 0])
    return call._replace(boxes=boxes)


def computed(call: Call, module: Any, name: str) -> Tensor:
    """The result in the precision of the arithmetic, also where boxes are in float64."""
    result = call.run(module, name)
    return result.float() if name == "prroi_pool_grad_boxes" and call.input.dtype != FLOAT64 else result


def bits(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)


def assert_same(x: Tensor, y: Tensor) -> None:
    """Equal bits, but for those of a NaN and the sign of 0."""
    assert x.dtype == y.dtype
    assert x.shape == y.shape
    assert bool(((x == y) | (x.isnan() & y.isnan())).all())


# --- the kernels are there ------------------------------------------------------------------------------------------


@EVERY_OPERATOR
def test_the_cpu_has_a_kernel_of_its_own(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"iounet::{name}", "CPU")


def test_the_library_has_code_for_each_width_of_register() -> None:
    if not shutil.which("objdump"):
        pytest.skip("objdump, of binutils, is not installed")
    library = str(files("iounet") / "_C.so")
    command = ["objdump", "-d", "--no-show-raw-insn", library]
    code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "xmm" not in code:
        pytest.skip("this is no x86-64")
    for register in ("zmm", "ymm"):
        for suffix in ("ps", "pd"):
            assert len(re.findall(rf"vfn?madd...{suffix} .*%{register}", code)) > 50


# --- the 2x rule ----------------------------------------------------------------------------------------------------


@EVERY_OPERATOR
@EVERY_OPTION
@EVERY_FORMAT
@EVERY_DTYPE
def test_error_is_within_twice_that_of_the_reference_in_the_same_precision(
    assert_within_twice: Callable[..., None],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    options: tuple[bool, bool, bool],
    name: str,
) -> None:
    call = with_odd_boxes(make_call(2, 82, 31, 37, dtype=dtype, memory_format=memory_format, options=options))
    actual, reference = computed(call, _ops, name), computed(call, _reference, name)
    assert actual.stride() == reference.stride()
    assert_within_twice(actual, reference, call.to(FLOAT64).run(_reference, name))


SHAPES = st.fixed_dictionaries(
    {
        "size": st.tuples(
            st.integers(1, 3),
            st.sampled_from([1, 3, 15, 16, 17, 31, 32, 64, 65, 83, 129]),
            st.integers(1, 40),
            st.integers(1, 40),
        ),
        "bins": st.tuples(st.integers(1, 14), st.integers(1, 14)),
        "boxes": st.integers(8, 24),
        "dtype": st.sampled_from([FLOAT64, FLOAT32, BFLOAT16, FLOAT16]),
        "memory_format": st.sampled_from(list(FORMATS.values())),
        "options": st.tuples(st.booleans(), st.booleans(), st.booleans()),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(shapes=SHAPES)
def test_every_shape_obeys_the_rule(assert_within_twice: Callable[..., None], shapes: dict[str, Any]) -> None:
    call = make_call(*shapes.pop("size"), **shapes)
    for name in NAMES:
        exact = call.to(FLOAT64).run(_reference, name)
        assert_within_twice(computed(call, _ops, name), computed(call, _reference, name), exact)


@EVERY_FORMAT
@pytest.mark.parametrize("side", [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0])
def test_float32_is_within_a_millionth_of_the_largest_output_whatever_the_bins(
    memory_format: torch.memory_format, side: float
) -> None:
    """On a map of 320 pixels; a bin has this side, of which scale 1/2 leaves a half."""
    call = make_call(1, 16, 320, 320, bins=(2, 3), sides=(5 * side, 6 * side), memory_format=memory_format)
    inside = call.boxes[:, 1:].clamp(0, 638)
    call = call._replace(boxes=torch.cat([call.boxes[:, :1], inside], 1), options=(False, False, True))
    exact = call.to(FLOAT64).run(_reference, "prroi_pool")
    assert (call.run(_ops, "prroi_pool") - exact).abs().amax() <= 1e-6 * exact.abs().amax()


# --- memory ---------------------------------------------------------------------------------------------------------


@EVERY_DTYPE
@pytest.mark.parametrize("bins", [(7, 7), (1, 1), (2, 9)])
def test_both_memory_formats_give_the_same_bits(dtype: torch.dtype, bins: tuple[int, int]) -> None:
    call = with_odd_boxes(make_call(2, 82, 31, 37, bins=bins, dtype=dtype))
    last = call._replace(
        input=call.input.to(memory_format=torch.channels_last), grad=call.grad.to(memory_format=torch.channels_last)
    )
    for name in NAMES[:2]:
        x = last.run(_ops, name)
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert_same(x, call.run(_ops, name))


@EVERY_FORMAT
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_low_precision_is_that_of_float32_rounded_once(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """Subnormal halves, infinities and NaN among the pixels."""
    call = make_call(1, 82, 31, 37, dtype=dtype, memory_format=memory_format)
    wide = torch.finfo(dtype).smallest_normal * 2.0 ** torch.linspace(-9, 9, 82)[:, None, None]
    call.input[:, ::2].mul_(wide[::2])
    call.grad[:, ::2].mul_(wide[::2])
    call.input[0, 0, 9, 9:12] = torch.tensor([math.inf, -math.inf, math.nan])
    call.input[0, 5, 20:] = torch.finfo(dtype).max
    single = call.to(FLOAT32)
    for name in NAMES[:2]:
        assert_same(call.run(_ops, name), single.run(_ops, name).to(dtype))
    assert_same(call.run(_ops, NAMES[2]), single.run(_ops, NAMES[2]))


def spaced(x: Tensor) -> Tensor:
    wide = x.new_empty(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide[..., ::2]


def unaligned(x: Tensor) -> Tensor:
    """One element behind the start of the memory, in the same format."""
    return x.new_empty(x.numel() + 1)[1:].as_strided(x.shape, x.stride()).copy_(x)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "spaced": spaced,
    "unaligned": unaligned,
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch innermost": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
}


@EVERY_OPERATOR
@EVERY_FORMAT
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_strides_are_read(name: str, memory_format: torch.memory_format, view: Callable[..., Tensor]) -> None:
    call = make_call(2, 66, 13, 19, memory_format=memory_format)
    viewed = call._replace(input=view(call.input), grad=view(call.grad), boxes=spaced(call.boxes))
    assert viewed.boxes.stride() != call.boxes.stride()
    actual, expected = viewed.run(_ops, name), call.run(_ops, name)
    assert (
        actual - expected
    ).abs().max() <= 1e-5 * expected.abs().max()  # in another layout sums are ordered otherwise


@EVERY_OPERATOR
def test_boxes_are_read_in_float32_too(name: str) -> None:
    call = make_call(2, 66, 13, 19)
    single = call._replace(boxes=call.boxes.float())
    assert_same(single.run(_ops, name), single._replace(boxes=single.boxes.double()).run(_ops, name).float())


@EVERY_OPERATOR
def test_expanded_tensors_are_read(name: str) -> None:
    call = make_call(3, 1, 13, 19, boxes=5)
    call = call._replace(
        input=call.input[:1, :, :, :1].expand(3, 40, 13, 19),
        grad=call.grad[:1, :, :1].expand(5, 40, 7, 7),
        boxes=call.boxes[:1].expand(5, 5),
    )
    dense = Call(*(x.contiguous() for x in call[:3]))
    assert_same(call.run(_ops, name), dense.run(_ops, name))


@EVERY_OPERATOR
@EVERY_FORMAT
def test_arguments_stay_as_they_are(name: str, memory_format: torch.memory_format) -> None:
    call = with_odd_boxes(make_call(2, 66, 13, 19, memory_format=memory_format))
    before = [x.clone() for x in call[:3]]
    call.run(_ops, name)
    assert all(torch.equal(bits(x), bits(y)) for x, y in zip(call[:3], before, strict=True))


@EVERY_OPERATOR
@EVERY_FORMAT
@pytest.mark.parametrize(("n", "c", "boxes"), [(2, 3, 0), (2, 0, 4), (1, 66, 0)])
def test_nothing_gives_nothing(name: str, memory_format: torch.memory_format, n: int, c: int, boxes: int) -> None:
    call = make_call(n, c, 6, 5, boxes=boxes, memory_format=memory_format)
    result = call.run(_ops, name)
    assert result.shape == call.run(_reference, name).shape
    assert not result.any()


# --- boxes ----------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[int, float]] = {
    "image too large": (0, 2),
    "image negative": (0, -1),
    "image not integral": (0, 0.5),
    "image NaN": (0, math.nan),
    "image huge": (0, 1e30),
    "NaN": (2, math.nan),
    "infinite": (3, math.inf),
    "negative infinite": (4, -math.inf),
}


@EVERY_FORMAT
@EVERY_OPTION
@pytest.mark.parametrize(("column", "value"), BAD.values(), ids=BAD)
def test_a_bad_box_is_nan_and_leaves_the_others_alone(
    memory_format: torch.memory_format, options: tuple[bool, bool, bool], column: int, value: float
) -> None:
    call = make_call(2, 66, 13, 19, boxes=6, memory_format=memory_format, options=options)
    without = call._replace(boxes=call.boxes[1:], grad=call.grad[1:])
    call.boxes[0, column] = value
    for name in NAMES[::2]:
        result = call.run(_ops, name)
        assert bool(result[0].isnan().all())
        assert_same(result[1:], without.run(_ops, name))
    assert_same(call.run(_ops, NAMES[1]), without.run(_ops, NAMES[1]))


@EVERY_FORMAT
def test_no_pixel_is_read_that_no_bin_covers(memory_format: torch.memory_format) -> None:
    """NaN around the window of a box would be seen in every product with it, were the weight 0."""
    call = make_call(1, 82, 31, 37, boxes=1, bins=(3, 4), memory_format=memory_format)
    boxes = torch.tensor([[0, 2 * 5.25, 2 * 8.5, 2 * 9.75, 2 * 12.25]], dtype=FLOAT64)
    around = torch.full_like(call.input, math.nan)
    around[..., 8:14, 5:11] = call.input[..., 8:14, 5:11]
    clean, spoilt = call._replace(boxes=boxes), call._replace(boxes=boxes, input=around)
    for name in NAMES[::2]:
        assert_same(spoilt.run(_ops, name), clean.run(_ops, name))
    assert not clean.run(_ops, NAMES[1])[around.isnan()].any()


@EVERY_FORMAT
def test_the_order_of_boxes_changes_no_output(memory_format: torch.memory_format) -> None:
    call = with_odd_boxes(make_call(2, 66, 13, 19, memory_format=memory_format))
    order = torch.randperm(len(call.boxes), generator=torch.Generator().manual_seed(0))
    shuffled = call._replace(boxes=call.boxes[order], grad=call.grad[order])
    for name in NAMES[::2]:
        assert_same(shuffled.run(_ops, name), call.run(_ops, name)[order])


@EVERY_FORMAT
def test_an_output_is_the_same_whatever_other_boxes_and_channels_there_are(memory_format: torch.memory_format) -> None:
    """Of these channels some are in blocks of 64, some in blocks of 16, some in the rest."""
    call = make_call(1, 82, 31, 37, memory_format=memory_format)
    whole = call.run(_ops, "prroi_pool")
    for channel in (0, 63, 64, 79, 81):
        one = call._replace(input=call.input[:, channel : channel + 1], boxes=call.boxes[3:4])
        assert_same(one.run(_ops, "prroi_pool"), whole[3:4, channel : channel + 1])


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def set_num_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@EVERY_OPERATOR
@EVERY_FORMAT
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_every_thread_count_gives_the_same_bits(
    name: str, memory_format: torch.memory_format, dtype: torch.dtype, set_num_threads: Callable[[int], None]
) -> None:
    call = make_call(2, 210, 70, 90, boxes=200, dtype=dtype, memory_format=memory_format)
    results = []
    for threads in (1, 2, 3, 8):
        set_num_threads(threads)
        results.append(bits(call.run(_ops, name)))
    assert os.cpu_count() == 1 or torch.get_num_threads() == 8
    assert all(torch.equal(result, results[0]) for result in results[1:])


# --- invariants -----------------------------------------------------------------------------------------------------

INVALID: dict[str, tuple[str, Callable[[Call], Call]]] = {
    "a map of 3 dimensions": ("prroi_pool", lambda c: c._replace(input=c.input[0])),
    "a map without pixels": ("prroi_pool", lambda c: c._replace(input=c.input[..., :0])),
    "a map of integers": ("prroi_pool", lambda c: c._replace(input=c.input.int())),
    "boxes of 4 columns": ("prroi_pool", lambda c: c._replace(boxes=c.boxes[:, 1:])),
    "boxes in half precision": ("prroi_pool_grad_input", lambda c: c._replace(boxes=c.boxes.half())),
    "fewer gradients than boxes": ("prroi_pool_grad_input", lambda c: c._replace(grad=c.grad[1:])),
    "gradients of other channels": ("prroi_pool_grad_boxes", lambda c: c._replace(grad=c.grad[:, 1:])),
    "gradients of another dtype": ("prroi_pool_grad_boxes", lambda c: c._replace(grad=c.grad.double())),
}


@pytest.mark.parametrize(("name", "spoil"), INVALID.values(), ids=INVALID)
def test_what_violates_an_invariant_is_refused(name: str, spoil: Callable[[Call], Call]) -> None:
    call = make_call(1, 3, 6, 5)
    n, _, h, w = call.input.shape
    spoilt = spoil(call)
    arguments = {
        "prroi_pool": (spoilt.input, spoilt.boxes, 7, 7),
        "prroi_pool_grad_input": (spoilt.grad, spoilt.boxes, n, h, w, False),
        "prroi_pool_grad_boxes": (spoilt.grad, spoilt.input, spoilt.boxes),
    }[name]
    with pytest.raises(RuntimeError):
        getattr(_ops, name)(*arguments, 0.5, False, False, False)
