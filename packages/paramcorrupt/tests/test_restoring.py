"""A block in which weights are changed: what is as before afterwards, whatever happens in it."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from paramcorrupt import bitflip, corrupted, corruption, random_corruption
from paramcorrupt._tensors import match, memory, parameters
from paramcorrupt.restoring import Written

if TYPE_CHECKING:
    from collections.abc import Callable


class Shift:
    """Add 1 to every weight, with a copy of all."""

    def _targets(self, model: Any) -> list[Tensor]:
        return list(parameters(model).tensors)

    def _write(self, targets: list[Tensor], *, keep: str = "backup") -> Written:
        places = [memory(x) for x in targets]
        copies = [x.clone() for x in places]
        for x in places:
            x.add_(1)

        def undo() -> None:
            for x, copy in zip(places, copies, strict=True):
                x.copy_(copy)

        return Written(sum(x.numel() for x in targets), 1.0, undo)


class Poke:
    """Change the first element of one weight, with a copy of this element."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _targets(self, model: Any) -> list[Tensor]:
        return match([self.name], model)

    def _write(self, targets: list[Tensor], *, keep: str = "backup") -> Written:
        place = memory(targets[0])[:1]
        old = place.clone()
        place.neg_().sub_(1)
        return Written(1, 1.0, lambda: place.copy_(old), whole=False)


class Interrupted(Shift):
    """Ctrl-C arrives while weights are written, or while they are restored."""

    def __init__(self, *, writing: bool) -> None:
        self.writing = writing

    def _write(self, targets: list[Tensor], *, keep: str = "backup") -> Written:
        def undo() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            written.undo()

        if self.writing:
            os.kill(os.getpid(), signal.SIGINT)
        written = super()._write(targets, keep=keep)
        return written if self.writing else written._replace(undo=undo)


class Net(nn.Module):
    """With batch statistics, dropout, a weight used twice, one that is not contiguous, one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(8, 6)
        self.second.weight = nn.Parameter(self.second.weight.detach().t().contiguous().t())
        self.third = nn.Linear(6, 8, bias=False)
        self.third.weight = self.first.weight
        self.frozen = nn.Parameter(torch.tensor([-0.0, float("nan"), float("inf")]), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x = self.third(self.second(self.drop(self.norm(self.first(x)))))
        return x + self.frozen[0]


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that must be as before: bits, memory, identity, flags, random numbers."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]

    def digest(x: Tensor) -> str:
        return hashlib.sha256(memory(x).view(torch.uint8).numpy().tobytes()).hexdigest()

    def bits(x: Tensor) -> Tensor:
        return x if x.dim() else x.reshape(1)

    return {
        "bits": {name: digest(bits(x)) for name, x in tensors},
        "memory": {name: (x.data_ptr(), x.stride(), x.dtype) for name, x in tensors},
        "objects": {name: id(x) for name, x in tensors},
        "modules": [(name, id(x), x.training) for name, x in model.named_modules()],
        "random": torch.get_rng_state().tolist(),
    }


def use(model: nn.Module) -> None:
    """Everything that a pass may move: batch statistics, buffers, random numbers, flags."""
    model.train()
    for _ in range(3):
        model(torch.randn(16, 6).to(model.first.weight.dtype))
    model.drop.eval()


def test_a_block_leaves_no_trace() -> None:
    model = Net().eval()
    before = state(model)
    with corrupted(model, Shift()) as applied:
        assert applied.changed == sum(p.numel() for p in model.parameters())
        assert applied.norm == 1
        assert state(model)["memory"] == before["memory"]
        assert all(state(model)["bits"][name] != before["bits"][name] for name, _ in model.named_parameters())
        assert model.third.weight is model.first.weight
        use(model)
        assert model.norm.num_batches_tracked == 3
    assert state(model) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_leaves_no_trace_and_goes_on(error: type[BaseException]) -> None:
    def block() -> None:
        with corrupted(model, Shift()):
            use(model)
            raise error("reason")

    model = Net()
    before = state(model)
    with pytest.raises(error, match="reason"):
        block()
    assert state(model) == before


def test_an_exception_of_the_block_is_not_hidden_by_what_the_block_did_to_weights() -> None:
    def block() -> None:
        with corrupted(model, Shift()):
            replace_memory(model)
            raise ZeroDivisionError

    model = Net()
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        block()
    assert state(model) == before


def test_ctrl_c_in_the_block_leaves_no_trace() -> None:
    model = Net()
    before = state(model)
    with pytest.raises(KeyboardInterrupt), corrupted(model, Shift()):
        os.kill(os.getpid(), signal.SIGINT)
    assert state(model) == before


@pytest.mark.parametrize("entered", [False, True], ids=["written", "restored"])
def test_ctrl_c_while_weights_are_half_written_waits_and_leaves_no_trace(entered: bool) -> None:
    def block() -> None:
        with corrupted(model, Interrupted(writing=not entered)):
            seen.append(True)

    model, seen = Net(), []
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        block()
    assert bool(seen) == entered
    assert state(model) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_just_before_weights_are_restored_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> Any:
        monkeypatch.undo()
        raise KeyboardInterrupt

    def block() -> None:
        with corrupted(model, Shift()):
            monkeypatch.setattr("paramcorrupt.restoring.uninterrupted", interrupted)

    model = Net()
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        block()
    assert state(model) == before


def test_blocks_within_blocks_end_one_by_one() -> None:
    model = Net()
    before = state(model)
    with corrupted(model, Shift()):
        once = state(model)["bits"]
        with corrupted(model, Poke("second.bias")):
            with corrupted(model, Shift()):
                use(model)
            assert state(model)["bits"] != once
        assert state(model)["bits"] == once
        with pytest.raises(ValueError, match="reason"), corrupted(model.state_dict(), Shift()):
            raise ValueError("reason")
        assert state(model)["bits"] == once
    assert state(model) == before


def gradients(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(p.shape, generator=generator).to(p.dtype) for name, p in model.named_parameters()}


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "worst": lambda model: corruption(gradients(model), eps=0.5),
    "worst, p=inf": lambda model: corruption(gradients(model), eps=0.1, p=float("inf")),
    "worst, p=3": lambda model: corruption(gradients(model), eps=0.5, p=3),
    "worst of 9": lambda model: corruption(gradients(model), eps=0.5, n=9),
    "worst, p=1": lambda model: corruption(gradients(model), eps=0.5, p=1),
    "random": lambda model: random_corruption(model, eps=0.5, seed=0),
    "random of 9": lambda model: random_corruption(model, eps=0.5, n=9, seed=0),
    "flips": lambda model: bitflip(model, count=30, seed=0),
    "stuck": lambda model: bitflip(model, fault="stuck", count=30, seed=0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("keep", ["backup", "compact"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_kind_of_change_is_undone(change: Callable[[nn.Module], Any], keep: Any, dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    before, versions = state(model), {name: p._version for name, p in model.named_parameters()}
    with corrupted(model, change(model), keep=keep) as applied:
        moved = [name for name, bits in state(model)["bits"].items() if bits != before["bits"][name]]
        assert applied.changed > 0
        assert moved
        assert all(p._version > versions[name] for name, p in model.named_parameters() if name in moved)
        use(model)
    assert state(model) == before
    assert all(p._version > versions[name] + 1 for name, p in model.named_parameters() if name in moved)


def test_undoing_needs_no_gradient_that_the_block_can_change() -> None:
    model = Net()
    grads, before = gradients(model), state(model)
    with corrupted(model, corruption(grads, eps=0.5)):
        for grad in grads.values():
            grad.zero_()
    assert state(model) == before


def test_a_block_may_be_entered_again_but_not_within_itself() -> None:
    model = Net()
    before = state(model)
    block = corrupted(model, Shift())
    for _ in range(2):
        with block, pytest.raises(RuntimeError, match="entered already"):
            block.__enter__()
        assert state(model) == before


def test_blocks_that_end_out_of_order_are_undone_and_refused() -> None:
    model = Net()
    before = state(model)
    outer, inner = corrupted(model, Shift()), corrupted(model, Poke("first.bias"))
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(RuntimeError, match="end the last one first"):
        outer.__exit__(None, None, None)
    assert state(model) == before
    inner.__exit__(None, None, None)
    assert state(model) == before


def test_blocks_over_different_models_end_in_any_order() -> None:
    models = [Net(), Net()]
    before = [state(model)["bits"] for model in models]
    blocks = [corrupted(model, Shift()) for model in models]
    for block in blocks:
        block.__enter__()
    for block in blocks:
        block.__exit__(None, None, None)
    assert [state(model)["bits"] for model in models] == before


def test_a_thread_may_hold_a_change() -> None:
    model, seen = Net(), []
    before = state(model)["bits"]

    def work() -> None:
        with corrupted(model, Shift()):
            seen.append(state(model)["bits"] != before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
    assert state(model)["bits"] == before


def add(model: Net) -> None:
    with torch.no_grad():
        model.first.weight.add_(1)


def step(model: Net) -> None:
    with torch.no_grad():
        torch._foreach_add_([model.second.weight, model.norm.bias], 1.0)


def reassign(model: Net) -> None:
    model.first.bias = nn.Parameter(torch.zeros(8))


def delete(model: Net) -> None:
    del model.first.bias


def replace_module(model: Net) -> None:
    model.norm = nn.Identity()


def replace_memory(model: Net) -> None:
    model.first.weight.data = torch.zeros(3, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (add, "'first.weight'"),
        (step, "'norm.bias', 'second.weight'"),
        (reassign, "'first.bias'"),
        (delete, "'first.bias'"),
        (replace_module, "'norm'"),
        (replace_memory, "'first.weight'"),
        (lambda model: model.double(), "'first.weight', 'first.bias', 'norm.weight'"),
    ],
    ids=["add", "step", "reassign", "delete", "replace module", "replace memory", "double"],
)
def test_weights_that_the_block_changes_are_restored_and_named(change: Callable[[Net], Any], names: str) -> None:
    model = Net()
    before = state(model)
    with pytest.raises(RuntimeError, match=f"Restored: .*{names}"), corrupted(model, Shift()):
        change(model)
    assert state(model) == before
    model(torch.randn(16, 6)).sum().backward()


def test_what_a_sparse_change_has_no_copy_of_is_named_as_not_restored() -> None:
    model = Net()
    before = model.first.bias.clone()
    with (
        pytest.raises(RuntimeError, match=r"'first\.bias'.*as the block left them elsewhere: 'first\.bias'"),
        corrupted(model, Poke("first.bias")),
        torch.no_grad(),
    ):
        model.first.bias.add_(1)
    assert model.first.bias[0] == before[0]
    assert torch.equal(model.first.bias[1:], before[1:] + 1)


def test_weights_changed_in_an_inner_block_are_its_own_fault() -> None:
    model = Net()
    before = state(model)
    with corrupted(model, Shift()), pytest.raises(RuntimeError, match="Restored"), corrupted(model, Shift()):
        add(model)
    assert state(model) == before


def test_weights_changed_between_two_inner_blocks_are_found() -> None:
    def block() -> None:
        with corrupted(model, Shift()):
            for _ in range(2):
                with corrupted(model, Shift()):
                    pass
                add(model)

    model = Net()
    before = state(model)
    with pytest.raises(RuntimeError, match=r"Restored: 'first\.weight'\."):
        block()
    assert state(model) == before


def test_graphs_from_before_the_block_and_of_it_fail_afterwards() -> None:
    weight = nn.Parameter(torch.ones(3))
    before = (weight * weight).sum()
    with corrupted([weight], Shift()):
        within = (weight * weight).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            before.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        within.backward()
    assert weight.grad is None


def test_gradients_of_the_block_stay() -> None:
    weight = nn.Parameter(torch.ones(3))
    with corrupted([weight], Shift()):
        weight.square().sum().backward()
    assert weight.grad.tolist() == [4, 4, 4]


def test_a_refused_change_writes_nothing() -> None:
    model = Net()
    before = state(model)
    versions = [p._version for p in model.parameters()]
    with pytest.raises(ValueError, match="missing"), corrupted(model, Poke("missing")):
        pass
    assert state(model) == before
    assert [p._version for p in model.parameters()] == versions


def test_a_way_to_keep_weights_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="keep must be 'backup' or 'compact', got 'all'"):
        corrupted(Net(), Shift(), keep="all")


def test_buffers_that_were_replaced_or_added_are_as_before() -> None:
    model = Net()
    before = state(model)
    with corrupted(model, Shift()):
        model.norm.running_mean = torch.ones(8)
        model.norm.running_var.data = torch.ones(8).double()
        model.norm.register_buffer("new", torch.ones(1))
        del model.count
    assert state(model) == before
    assert list(model._buffers) == ["count", "nothing"]


def test_buffers_that_the_block_leaves_alone_are_not_written() -> None:
    model = Net().eval()
    version = model.norm.running_mean._version
    output = model(torch.randn(4, 6))
    with corrupted(model.norm, Poke("bias")):
        pass
    assert model.norm.running_mean._version == version
    torch.autograd.grad(output.sum(), model.norm.weight)


def test_the_sign_of_a_zero_and_a_nan_in_a_buffer_come_back() -> None:
    model = nn.BatchNorm1d(2)
    model.running_mean.copy_(torch.tensor([-0.0, float("nan")]))
    bits = model.running_mean.view(torch.int32).tolist()
    with corrupted(model, Shift()):
        model.running_mean.zero_()
    assert model.running_mean.view(torch.int32).tolist() == bits


def test_a_model_may_be_a_mapping_pairs_or_tensors() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    for model in (tensors, tensors.items(), iter(tensors.items()), list(tensors.values())):
        with corrupted(model, Shift()):
            assert tensors["a"].tolist() == [1, 1, 1]
        assert tensors["a"].tolist() == [0, 0, 0]


def test_weights_of_inference_mode_are_restored() -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 2)
        before = model.weight.clone()
        with corrupted(model, Shift()):
            assert not torch.equal(model.weight, before)
        assert torch.equal(model.weight, before)
