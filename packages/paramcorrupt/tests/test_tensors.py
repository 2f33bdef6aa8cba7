"""Which tensors there are, which are one, what is refused, and where in memory their elements lie."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from paramcorrupt import _tensors

if TYPE_CHECKING:
    from collections.abc import Callable


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.embed.weight


class Wrapper(Tensor):
    """A subclass that is no DTensor."""


# --- lists ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["module", "mapping", "pairs", "generator"])
def test_named_tensors_keep_their_order_and_tied_ones_come_once_under_the_first_name(kind: str) -> None:
    model = Tied()
    pairs = list(model.named_parameters(remove_duplicate=False))
    source: Any = {"module": model, "mapping": dict(pairs), "pairs": pairs, "generator": (x for x in pairs)}[kind]
    named = _tensors.parameters(source)
    assert named.names == ("embed.weight", "norm.weight", "norm.bias", "out.bias")
    assert all(x is model.get_parameter(name) for name, x in zip(named.names, named.tensors, strict=True))


def test_a_sequence_is_named_by_its_places() -> None:
    x, y = torch.ones(2), torch.zeros(3)
    assert _tensors.parameters([x, y]).names == ("0", "1")
    assert _tensors.parameters([]).names == ()


def test_two_parameters_over_the_same_memory_are_one() -> None:
    x = torch.zeros(4, 3)
    named = _tensors.parameters({"a": nn.Parameter(x), "b": nn.Parameter(x), "c": torch.ones(2)})
    assert named.names == ("a", "c")


def test_buffers_and_integers_come_when_they_are_wanted() -> None:
    model = Tied()
    assert "norm.running_mean" not in _tensors.parameters(model).names
    assert _tensors.parameters(model, buffers=True).names[-2:] == ("norm.running_mean", "norm.running_var")
    every = _tensors.parameters(model, buffers=True, only_floating=False).names
    assert every[-1] == "norm.num_batches_tracked"


OVERLAPPING: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "rows": lambda x: (x[:3], x[2:]),
    "transposed": lambda x: (x, x.t()),
    "columns": lambda x: (x[:, :3], x[:, 2:]),
    "dtypes": lambda x: (x.view(torch.bfloat16)[:2], x[:1]),
}


@pytest.mark.parametrize("kind", OVERLAPPING)
def test_tensors_that_overlap_without_being_the_same_are_refused(kind: str) -> None:
    one, other = OVERLAPPING[kind](torch.zeros(6, 6))
    with pytest.raises(ValueError, match=r"got '(one|other)' and '(one|other)', which overlap"):
        _tensors.parameters({"one": one, "other": other})


def test_views_of_one_storage_that_share_no_element_are_accepted() -> None:
    x = torch.zeros(6, 6)
    assert len(_tensors.parameters([x[:2], x[2:, :3], x[2:, 3:5], x[2:, 5:]]).names) == 4


def test_lazy_parameters_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"'weight' must be initialised, run the model once"):
        _tensors.parameters(nn.LazyLinear(3))


@pytest.mark.parametrize("source", [torch.ones(3), "weights", 3, None])
def test_what_is_no_list_of_tensors_is_refused(source: object) -> None:
    with pytest.raises(TypeError, match=r"model must be a module, a mapping, .* got"):
        _tensors.parameters(source)


def test_what_is_no_name_and_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"strings for names, got 3"):
        _tensors.parameters({3: torch.ones(1)})
    with pytest.raises(TypeError, match=r"got float for 'w'"):
        _tensors.parameters({"w": 1.0})
    with pytest.raises(ValueError, match=r"different names, got \['w', 'w'\]"):
        _tensors.parameters([("w", torch.ones(1)), ("w", torch.ones(1))])


# --- gradients ------------------------------------------------------------------------------------------------------


def test_gradients_of_a_module_are_those_of_its_parameters_and_the_others_are_skipped() -> None:
    model = Tied()
    model.embed(torch.tensor([1])).sum().backward()
    named, skipped = _tensors.gradients(model)
    assert named.names == ("embed.weight",)
    assert named.tensors[0] is model.embed.weight.grad
    assert skipped == ("norm.weight", "norm.bias", "out.bias")


def test_a_gradient_that_two_parameters_have_in_common_counts_for_both() -> None:
    """Autograd gives one tensor for the operands of a sum."""
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    grads = torch.autograd.grad((x + y).square().sum(), [x, y])
    assert grads[0] is grads[1]
    assert len(_tensors.gradients(grads)[0].names) == 2


def test_none_stands_for_no_gradient() -> None:
    named, skipped = _tensors.gradients([None, torch.ones(2)])
    assert (named.names, skipped) == (("1",), ("0",))


@pytest.mark.parametrize("grads", [{}, [], [None], [torch.ones(0)], nn.Linear(2, 2)])
def test_no_gradient_anywhere_is_refused(grads: Any) -> None:
    with pytest.raises(ValueError, match=r"grads must have a gradient with at least one element"):
        _tensors.gradients(grads)


def test_tensors_without_a_gradient_are_named() -> None:
    with pytest.raises(ValueError, match=r"got none for 'weight', 'bias'; call backward before"):
        _tensors.gradients(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"got none for '0', '1', '2' and 4 more; call"):
        _tensors.gradients([None] * 7)


@pytest.mark.parametrize(
    ("grad", "what"),
    [
        (torch.ones(2, dtype=torch.int64), r"torch\.int64"),
        (torch.ones(2, dtype=torch.complex64), r"torch\.complex64"),
        (torch.ones(2, dtype=torch.float8_e5m2), r"torch\.float8_e5m2"),
        (torch.ones(2, 2).to_sparse(), r"torch\.sparse_coo of torch\.float32"),
        (torch.ones(2, device="meta"), r"meta tensor of torch\.float32"),
        (torch.ones(2).as_subclass(Wrapper), "Wrapper"),
    ],
)
def test_gradients_that_are_no_dense_floats_are_refused(grad: Tensor, what: str) -> None:
    with pytest.raises(TypeError, match=rf"gradient 'w' must .*{what}"):
        _tensors.gradients({"v": torch.ones(1), "w": grad})


# --- the tensors of a change ----------------------------------------------------------------------------------------


def test_names_are_matched_with_all_the_names_that_a_model_has() -> None:
    model = Tied()
    found = _tensors.match(["out.weight", "norm.running_var", "norm.bias"], model)
    assert [id(x) for x in found] == [id(x) for x in (model.embed.weight, model.norm.running_var, model.norm.bias)]


def test_numbers_count_the_parameters_unless_they_are_names() -> None:
    model = Tied()
    assert _tensors.match(["1"], model)[0] is model.norm.weight
    parts = nn.ParameterList([torch.ones(1), torch.ones(2)])
    assert _tensors.match(["1"], parts)[0] is parts[1]
    with pytest.raises(ValueError, match=r"none with the name '9'"):
        _tensors.match(["9"], model)


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ({"v": torch.ones(2)}, ValueError, r"none with the name 'w'"),
        ({"w": torch.ones(3)}, ValueError, r"parameter 'w' must have the shape of its change, \(2,\), got \(3,\)"),
        ({"w": torch.ones(2, dtype=torch.int8)}, ValueError, r"parameter 'w' must be of float32.*int8"),
        ({"w": torch.ones(1).expand(2)}, ValueError, r"parameter 'w' must have memory for each element"),
        ({"w": torch.ones(2, device="meta")}, TypeError, r"parameter 'w' must have data"),
        ({"w": torch.ones(2).as_subclass(Wrapper)}, TypeError, r"parameter 'w' must be a plain tensor, got Wrapper"),
        ({"w": torch.ones(2).to_sparse()}, TypeError, r"parameter 'w' must be strided"),
    ],
)
def test_tensors_that_do_not_fit_a_change_are_refused(model: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        _tensors.check_targets(["w"], [(2,)], model)


def test_two_names_of_one_tensor_are_refused_as_targets() -> None:
    with pytest.raises(ValueError, match=r"'embed.weight' and 'out.weight', which overlap"):
        _tensors.check_targets(["embed.weight", "out.weight"], [(5, 3)] * 2, Tied())


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "given", "kind", "message"),
    [
        ("check_eps", (-0.5,), ValueError, r"eps must be finite and non-negative, got -0\.5"),
        ("check_eps", (math.nan,), ValueError, "got nan"),
        ("check_eps", (math.inf,), ValueError, "got inf"),
        ("check_eps", ("1",), TypeError, "eps must be a number"),
        ("check_eps", (True,), TypeError, "got True"),
        ("check_p", (0.5,), ValueError, r"p must be at least 1, got 0\.5"),
        ("check_p", (math.nan,), ValueError, "got nan"),
        ("check_p", (None,), TypeError, "p must be a number"),
        (
            "check_n",
            (
                0,
                7,
            ),
            ValueError,
            "got n=0 with k=7",
        ),
        (
            "check_n",
            (
                8,
                7,
            ),
            ValueError,
            "got n=8 with k=7",
        ),
        (
            "check_n",
            (
                True,
                7,
            ),
            TypeError,
            "n must be an integer or None, got True",
        ),
        (
            "check_n",
            (
                2.0,
                7,
            ),
            TypeError,
            r"got 2\.0",
        ),
        ("check_seed", (-1,), ValueError, "got -1"),
        ("check_seed", (1 << 63,), ValueError, "below 2"),
        ("check_seed", (1.0,), TypeError, "seed must be an integer"),
    ],
)
def test_arguments_out_of_their_range_are_refused(
    check: str, given: tuple[Any, ...], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        getattr(_tensors, check)(*given)


# --- memory ---------------------------------------------------------------------------------------------------------

DENSE: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(5, 7),
    "transposed": lambda: torch.randn(5, 7).t(),
    "channels_last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "0-dim": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 3),
    "permuted, inside of another": lambda: torch.randn(3, 3, 4).permute(1, 2, 0)[:, :, :1],
}
GAPS: dict[str, Callable[[], Tensor]] = {
    "columns": lambda: torch.randn(6, 8)[1:, 2:5],
    "every fourth": lambda: torch.randn(12)[3::4],
    "transposed columns": lambda: torch.randn(6, 8)[:, 1:3].t(),
}
LAYOUTS = DENSE | GAPS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_is_found_in_the_memory_of_its_tensor(layout: str) -> None:
    x = LAYOUTS[layout]()
    index = _tensors.memory_index(x, torch.arange(x.numel()))
    assert torch.equal(_tensors.memory(x)[index], x.reshape(-1))
    assert torch.equal(_tensors.logical(x).view(-1), x.reshape(-1))


def test_memory_is_the_tensor_itself_with_its_version() -> None:
    x = nn.Parameter(torch.randn(4, 6)[:, 1:3].t())
    before = x._version
    _tensors.memory(x)[0] = 7
    assert x[0, 0] == 7
    assert x._version > before
    assert not _tensors.memory(x).requires_grad


@pytest.mark.parametrize("layout", DENSE)
def test_gradients_are_laid_out_as_the_memory_of_weights(layout: str) -> None:
    x = DENSE[layout]()
    g = torch.randn(x.shape)
    places = _tensors.memory_index(x, torch.arange(x.numel()))
    assert torch.equal(_tensors.laid_out(g, x)[places], g.reshape(-1))
    assert _tensors.laid_out(x, x).data_ptr() == x.data_ptr()


def test_what_expand_gives_overlaps_itself_and_what_fills_its_memory_is_dense() -> None:
    assert _tensors.overlaps_itself(torch.ones(3, 1).expand(3, 2))
    assert not any(_tensors.overlaps_itself(layout()) for layout in LAYOUTS.values())
    assert [_tensors.is_dense(layout()) for layout in LAYOUTS.values()] == [True] * len(DENSE) + [False] * len(GAPS)


def test_numbers_that_are_negated_when_read_are_read_so() -> None:
    x = torch.view_as_complex(torch.tensor([[1.0, 2.0], [3.0, -4.0]])).conj().imag
    assert x.is_neg()
    assert _tensors.logical(x).tolist() == [-2.0, 4.0]
    assert not _tensors.logical(x).is_neg()
