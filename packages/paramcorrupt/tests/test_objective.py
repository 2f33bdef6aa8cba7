"""Loss, accuracy and gradient over a data set: what is counted how, and that measuring leaves no trace."""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from paramcorrupt import Objective
from paramcorrupt.objective import Evaluation, as_objective, check_data, evaluate, gradient, undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 3


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def split(size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(BATCH.split(size), LABELS.split(size), strict=True))


def measure(model: nn.Module, loss: Any, data: Any) -> tuple[Evaluation, dict[str, Tensor]]:
    objective = as_objective(loss)
    with undisturbed(model):
        evaluation, grads = gradient(model, objective, data)
        again = evaluate(model, objective, data)
    assert again == replace(evaluation, loss=pytest.approx(evaluation.loss, rel=1e-6))
    return evaluation, grads


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- what is counted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", F.cross_entropy, nn.CrossEntropyLoss()], ids=["name", "F", "nn"])
@pytest.mark.parametrize("size", [10, 4, 3, 1])
def test_batches_weigh_by_their_examples(loss: Any, size: int) -> None:
    model = network().double()
    data = [(x.double(), y) for x, y in split(size)]
    evaluation, grads = measure(model, loss, data)
    model.eval()
    output = model(BATCH.double())
    expected = F.cross_entropy(output, LABELS)
    expected.backward()
    assert evaluation.loss == pytest.approx(expected.item(), rel=1e-12)
    assert evaluation.accuracy == (output.argmax(1) == LABELS).double().mean().item()
    assert (evaluation.count, evaluation.batches) == (10, math.ceil(10 / size))
    for name, p in model.named_parameters():
        assert torch.allclose(grads[name], p.grad, rtol=1e-12, atol=1e-15)


def test_the_gradient_of_one_batch_is_bit_for_bit_that_of_autograd() -> None:
    model = network()
    grads = measure(model, "cross_entropy", split(10))[1]
    model.eval()
    F.cross_entropy(model(BATCH), LABELS).backward()
    assert all(torch.equal(grads[name], p.grad) for name, p in model.named_parameters())


def test_ignored_targets_and_further_dimensions_are_those_of_torch() -> None:
    model = nn.Conv1d(6, 3, 1)
    x, y = torch.randn(4, 6, 5), torch.randint(3, (4, 5))
    y[0, 1:] = y[3] = -100
    data = [(x[:3], y[:3]), (x[3:], y[3:])]
    output = model(x)
    for loss in ("cross_entropy", F.cross_entropy):
        evaluation, grads = measure(model, loss, data)
        assert evaluation.count == 11
        assert evaluation.loss == pytest.approx(F.cross_entropy(output, y).item(), rel=1e-6)
        assert evaluation.accuracy == int((output.argmax(1) == y).sum()) / 11
        expected = torch.autograd.grad(F.cross_entropy(output, y), model.weight, retain_graph=True)[0]
        assert torch.allclose(grads["weight"], expected, atol=1e-6)


def test_targets_may_be_probabilities() -> None:
    model, y = nn.Linear(6, 3), torch.randn(10, 3).softmax(1)
    evaluation, _ = measure(model, "cross_entropy", [(BATCH[:7], y[:7]), (BATCH[7:], y[7:])])
    output = model(BATCH)
    assert evaluation.loss == pytest.approx(F.cross_entropy(output, y).item(), rel=1e-6)
    assert evaluation.accuracy == pytest.approx((output.argmax(1) == y.argmax(1)).double().mean().item())
    assert evaluation.count == 10


def test_a_loss_of_numbers_has_no_accuracy() -> None:
    model, y = nn.Linear(6, 2), torch.randn(10, 2)
    evaluation, _ = measure(model, F.mse_loss, [(BATCH[:7], y[:7]), (BATCH[7:], y[7:])])
    assert evaluation == Evaluation(pytest.approx(F.mse_loss(model(BATCH), y).item(), rel=1e-6), None, 10, 2)


def test_an_output_that_is_not_finite_is_never_right() -> None:
    output = torch.tensor([[0.0, math.nan], [0, math.inf], [0, 1], [-math.inf, 1]])
    evaluation = evaluate(nn.Identity(), as_objective("cross_entropy"), [(output, torch.ones(4, dtype=torch.int64))])
    assert evaluation.accuracy == 0.5
    assert math.isnan(evaluation.loss)


def test_losses_are_summed_in_double() -> None:
    objective = Objective(lambda model, batch: (torch.tensor(batch), 1, None))
    assert evaluate(nn.Identity(), objective, [1e8, *[1.0] * 100]).loss == (1e8 + 100) / 101


def test_an_objective_says_what_counts() -> None:
    def step(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int, int]:
        error = (model(batch["x"]) - 1).abs()
        return error.sum(), error.numel(), int((error < 0.5).sum())

    model = nn.Linear(6, 1)
    evaluation, grads = measure(model, Objective(step), [{"x": BATCH[:2]}, {"x": BATCH[2:]}])
    error = (model(BATCH) - 1).abs()
    assert evaluation.loss == pytest.approx(error.mean().item(), rel=1e-6)
    assert evaluation.accuracy == (error < 0.5).double().mean().item()
    assert torch.allclose(grads["weight"], torch.autograd.grad(error.mean(), model.weight)[0], atol=1e-6)


class Language(nn.Module):
    """What Hugging Face's causal models do with labels."""

    def __init__(self, *, shifts: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 7)
        self.shifts = shifts
        self.config = SimpleNamespace(is_encoder_decoder=not shifts)

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        logits = self.embedding(input_ids)
        inside, target = (logits[:, :-1], labels[:, 1:]) if self.shifts else (logits, labels)
        return SimpleNamespace(loss=F.cross_entropy(inside.flatten(0, 1), target.flatten()), logits=logits)


@pytest.mark.parametrize("shifts", [True, False])
def test_tokens_of_a_language_model_weigh_alike(shifts: bool) -> None:
    model = Language(shifts=shifts)
    ids, labels = torch.randint(7, (5, 9)), torch.randint(7, (5, 9))
    labels[1, 3:] = labels[4] = -100
    data = [{"input_ids": ids[i : i + 2], "labels": labels[i : i + 2]} for i in (0, 2, 4)]
    evaluation, _ = measure(model, "lm", data)
    logits = model.embedding(ids)
    inside, target = (logits[:, :-1], labels[:, 1:]) if shifts else (logits, labels)
    expected = F.cross_entropy(inside.flatten(0, 1), target.flatten()).item()
    count = int((target != -100).sum())
    assert evaluation.loss == pytest.approx(expected, rel=1e-6)
    assert evaluation.count == count
    assert evaluation.accuracy == int((inside.argmax(-1) == target).sum()) / count


def test_half_precision_sums_stay_in_range() -> None:
    model = nn.Linear(1, 1, bias=False).half()
    data = [(torch.full((64, 1), 30.0).half(), torch.zeros(64, 1).half())] * 50
    _, grads = measure(model, lambda output, target: (output.float() - target).mean() * 40, data)
    assert grads["weight"].dtype == torch.float16
    assert grads["weight"].item() == pytest.approx(1200, rel=1e-2)


# --- data ------------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.zeros(6)] * self.length)


@pytest.mark.parametrize(
    "data",
    [iter([1]), (x for x in [1]), 3, None, torch.zeros(3), {"x": 1}, "ab"],
    ids=["iterator", "generator", "number", "None", "tensor", "dict", "text"],
)
def test_data_that_can_be_read_once_only_is_refused(data: Any) -> None:
    with pytest.raises(TypeError, match="data must be"):
        check_data(data)


@pytest.mark.parametrize("data", [[], (), DataLoader(Stream(0))], ids=["list", "tuple", "loader"])
def test_empty_data_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        check_data(data)


def test_looking_into_data_of_unknown_length_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    check_data(DataLoader(Stream(2)))
    check_data(DataLoader(TensorDataset(BATCH), shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    "nest",
    [
        lambda x, y: {"x": x, "y": [y]},
        lambda x, y: [x, {"y": (y,)}],
        lambda x, y: Pair(x, {"y": y}),
        lambda x, y: (x, [[y, "text", None, 1]]),
    ],
    ids=["dict", "list", "named tuple", "other things"],
)
def test_tensors_of_nested_batches_are_moved_to_the_model(nest: Callable[[Tensor, Tensor], Any]) -> None:
    batch, seen = nest(torch.zeros(2), torch.zeros(2)), []

    def step(model: nn.Module, moved: Any) -> tuple[Tensor, int, None]:
        seen.append(moved)
        return torch.zeros(()), 1, None

    def structure(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.device.type
        if isinstance(x, dict):
            return {key: structure(value) for key, value in x.items()}
        return (type(x), [structure(y) for y in x]) if isinstance(x, list | tuple) else x

    model = nn.Linear(2, 2, device="meta")
    evaluate(model, Objective(step), [batch])
    assert repr(structure(seen[0])) == repr(structure(batch)).replace("cpu", "meta")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        ("mse", ValueError, "loss must be 'cross_entropy', 'lm'"),
        (3, TypeError, "loss must be 'cross_entropy', 'lm'"),
        (lambda output, target: output, ValueError, r"0-d tensor, got the shape \(10, 3\)"),
        (lambda output, target: 1.0, ValueError, "0-d tensor, got float"),
        (lambda output, target: output.sum() * math.nan, ValueError, "must be finite, got nan"),
        (lambda output, target: output.sum() + math.inf, ValueError, "must be finite, got inf"),
        (lambda output, target: torch.zeros(()), ValueError, "must depend on parameters"),
        ("lm", ValueError, "mapping with labels, got tuple of 2"),
    ],
)
def test_losses_that_cannot_be_used_are_named(loss: Any, error: type[Exception], message: str) -> None:
    model = network()
    with pytest.raises(error, match=message), undisturbed(model):
        gradient(model, as_objective(loss), split(10))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "batch", [BATCH, (BATCH,), {"x": BATCH}, (BATCH, LABELS, LABELS)], ids=["tensor", "one", "dict", "three"]
)
def test_batches_that_are_no_pairs_are_named(batch: Any) -> None:
    with pytest.raises(ValueError, match=r"a batch must be \(input, target\)"):
        evaluate(network(), as_objective("cross_entropy"), [batch])


def test_data_without_an_example_is_refused() -> None:
    labels = torch.full_like(LABELS, -100)
    for loss in ("cross_entropy", F.cross_entropy):
        with pytest.raises(ValueError, match="at least one example, got none in 1 batches"):
            evaluate(network(), as_objective(loss), [(BATCH, labels)])


# --- no trace ---------------------------------------------------------------------------------------------------------


def test_measuring_leaves_no_trace() -> None:
    model = network()
    model[1].eval()
    model(BATCH).sum().backward()
    model[0].bias.grad = None
    grads = [p.grad for p in model.parameters()]
    bits = [None if g is None else g.clone() for g in grads]
    buffers = {name: (id(x), x.clone()) for name, x in model.named_buffers()}
    flags = [m.training for m in model.modules()]
    versions = [p._version for p in model.parameters()]
    random = torch.get_rng_state()
    for mode in ("eval", "keep"):
        with undisturbed(model, mode):
            assert all(p.grad is None for p in model.parameters())
            gradient(model, as_objective("cross_entropy"), split(4))
            evaluate(model, as_objective("cross_entropy"), split(4))
        assert [p.grad for p in model.parameters()] == grads or all(
            p.grad is g for p, g in zip(model.parameters(), grads, strict=True)
        )
        assert all(b is None or torch.equal(g, b) for g, b in zip(grads, bits, strict=True))
        assert all(id(x) == buffers[name][0] for name, x in model.named_buffers())
        assert all(torch.equal(x, buffers[name][1]) for name, x in model.named_buffers())
        assert [m.training for m in model.modules()] == flags
        assert [p._version for p in model.parameters()] == versions
        assert torch.equal(torch.get_rng_state(), random)


def test_every_pass_begins_as_the_first() -> None:
    model, objective = network(), as_objective("cross_entropy")
    with undisturbed(model, "keep"):
        assert gradient(model, objective, split(4))[0] == evaluate(model, objective, split(4))
        assert evaluate(model, objective, split(4)) == evaluate(model, objective, split(4))


def test_an_error_leaves_no_trace() -> None:
    model = network()
    model(BATCH).sum().backward()
    grads = [p.grad for p in model.parameters()]
    mean = model[1].running_mean.clone()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), undisturbed(model, "keep"):
        gradient(model, as_objective(loss), split(4))
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(model[1].running_mean, mean)


def test_dropout_is_off_unless_the_mode_is_kept() -> None:
    model, objective = network(), as_objective("cross_entropy")
    losses = []
    for mode in ("eval", "keep"):
        for seed in (1, 2):
            torch.manual_seed(seed)
            with undisturbed(model, mode):
                losses.append(evaluate(model, objective, split(10)).loss)
    assert losses[0] == losses[1]
    assert losses[2] != losses[3]
    with pytest.raises(ValueError, match="mode must be 'eval' or 'keep', got 'train'"), undisturbed(model, "train"):
        pass


def test_float32_is_float32_while_something_is_measured() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with undisturbed(nn.Linear(2, 2)):
            assert matmul.fp32_precision == "ieee"
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_hooks_of_gradients_are_called() -> None:
    model, seen = network(), []
    model[0].weight.register_hook(lambda grad: grad * 2)
    model[0].bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    plain = measure(network(), "cross_entropy", split(5))[1]
    hooked = measure(model, "cross_entropy", split(5))[1]
    assert torch.allclose(hooked["0.weight"], 2 * plain["0.weight"], atol=1e-6)
    assert len(seen) == 2


def test_gradients_can_be_taken_where_none_are_recorded() -> None:
    model = network()
    expected = measure(model, "cross_entropy", split(5))[1]
    with torch.no_grad():
        assert torch.equal(measure(model, "cross_entropy", split(5))[1]["0.weight"], expected["0.weight"])


def test_parameters_without_a_gradient_have_none() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    model.unused = nn.Parameter(torch.ones(3))
    grads = measure(model[:5], "cross_entropy", split(5))[1]
    assert list(grads) == ["0.weight", "1.weight", "1.bias", "4.weight", "4.bias"]
