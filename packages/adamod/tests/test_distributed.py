"""Two processes with gloo on CPU: replicas stay equal, shards make what one process makes, checkpoints come through.

Run by pytest this file starts itself twice as a program. Each process goes through all functions marked as scenarios
and saves what they return; the tests look at the results of both.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from adamod import AdaMod, DiffMod

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

WORLD = 2
STATES = ("exp_avg", "exp_avg_sq", "exp_avg_lr")
SCENARIOS: dict[str, Callable[[int], Any]] = {}


def scenario(function: Callable[[int], Any]) -> Callable[[int], Any]:
    SCENARIOS[function.__name__] = function
    return function


# --- in the processes -----------------------------------------------------------------------------------------------


class Linear(nn.Linear):
    """Computes in float32 whatever its parameters are."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.float(), self.bias.float())


class Net(nn.Module):
    """Layers that two processes can halve, that they cannot, and one of which the second process gets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.odd, self.one = Linear(64, 128), Linear(128, 31), Linear(31, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.odd(self.wide(x).tanh()).tanh())


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def batch(step: int, rank: int) -> Tensor:
    return torch.randn(8, 64, generator=torch.Generator().manual_seed(100 * step + rank))


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x[:, :1]).pow(2).mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, first: int, last: int) -> None:
    for step in range(first, last + 1):
        optimizer.zero_grad()
        loss_of(model, batch(step, rank)).backward()
        optimizer.step()


def train_alone(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """What all processes do together: the mean of their gradients, as DDP takes it."""
    for step in range(first, last + 1):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for rank in range(WORLD):
            optimizer.zero_grad()
            loss_of(model, batch(step, rank)).backward()
            for sum_, p in zip(total, model.parameters(), strict=True):
                sum_ += p.grad / WORLD
        for sum_, p in zip(total, model.parameters(), strict=True):
            p.grad = sum_
        optimizer.step()


def local(x: Any) -> Any:
    return x.to_local() if hasattr(x, "to_local") else x


def full(x: Any) -> Any:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer, of: Callable[[Any], Any] = full) -> dict[str, Tensor]:
    """Parameters and states by name."""
    found, saved = {}, optimizer.state_dict()["state"]
    for k, (name, p) in enumerate(model.named_parameters()):
        found[name] = of(p.detach()).clone()
        found |= {f"{name}.{key}": of(x).clone() for key, x in saved[k].items()}
    return found


def sharded(model: nn.Module, mesh: Any = None) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=mesh)


@scenario
def ddp(rank: int) -> dict[str, Any]:
    from torch.nn.parallel import DistributedDataParallel

    results = {}
    for name, dtype, state_dtype in (
        ("float32-bf16", torch.float32, torch.bfloat16),
        ("bf16-int8", torch.bfloat16, "int8"),
    ):
        model, alone = net(dtype), net(dtype)
        wrapped = DistributedDataParallel(model)
        optimizer = AdaMod(wrapped.parameters(), lr=3e-3, beta3=0.99, state_dtype=state_dtype)
        single = AdaMod(alone.parameters(), lr=3e-3, beta3=0.99, state_dtype=state_dtype)
        train(wrapped, optimizer, rank, 1, 100)
        if rank == 0:
            train_alone(alone, single, 1, 100)
        results[name] = {"replica": tensors(model, optimizer), "alone": tensors(alone, single) if rank == 0 else {}}
    return results


@scenario
def fsdp(rank: int) -> dict[str, Any]:
    results = {}
    options = {"lr": 1e-2, "beta3": 0.9, "weight_decay": 0.1}
    for kind in (AdaMod, DiffMod):
        model, alone = sharded(net()), net()
        optimizer, single = kind(model.parameters(), **options), kind(alone.parameters(), **options)
        train(model, optimizer, rank, 1, 10)
        train_alone(alone, single, 1, 10)
        placed = {}
        for name, p in model.named_parameters():
            for key, x in optimizer.state[p].items():
                if key != "step":
                    placed[f"{name}.{key}"] = str((x.placements, x.device_mesh)) == str((p.placements, p.device_mesh))
        results[kind.__name__] = {
            "together": tensors(model, optimizer),
            "alone": tensors(alone, single),
            "placed": placed,
            "shards": {name: local(p).numel() for name, p in model.named_parameters()},
        }
    return results


@scenario
def shards_draw_by_their_coordinate(rank: int) -> dict[str, Any]:
    """Each shard against a plain parameter of its values, whose seed is that of the shard."""
    results = {}
    for name, state_dtype in (("bf16", torch.bfloat16), ("int8", "int8")):
        model = sharded(net())
        optimizer = AdaMod(
            [{"params": list(model.parameters()), "seed": 5}], lr=1e-2, beta3=0.9, state_dtype=state_dtype
        )
        plain = [nn.Parameter(local(p.detach()).clone()) for p in model.parameters()]
        others = [
            AdaMod([{"params": plain, "seed": 5 + 65537 * r}], lr=1e-2, beta3=0.9, state_dtype=state_dtype)
            for r in (rank, 1 - rank)
        ]
        plain_of_other = [nn.Parameter(p.detach().clone()) for p in plain]
        others[1].param_groups[0]["params"] = plain_of_other
        for step in range(1, 6):
            optimizer.zero_grad()
            loss_of(model, batch(step, rank)).backward()
            for p, q, r in zip(model.parameters(), plain, plain_of_other, strict=True):
                q.grad, r.grad = local(p.grad).clone(), local(p.grad).clone()
            optimizer.step()
            for other in others:
                other.step()
        ours = [
            local(x) for p in model.parameters() for x in (p.detach(), *(optimizer.state[p][key] for key in STATES))
        ]
        theirs = [
            [x for p in other.param_groups[0]["params"] for x in (p.detach(), *(other.state[p][key] for key in STATES))]
            for other in others
        ]
        results[name] = {"ours": ours, "same seed": theirs[0], "other seed": theirs[1]}
    return results


@scenario
def replicas_of_shards(rank: int) -> dict[str, Tensor]:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (WORLD, 1), mesh_dim_names=("replicate", "shard"))
    model = sharded(net(torch.bfloat16), mesh)
    optimizer = AdaMod(model.parameters(), lr=1e-2, state_dtype=torch.bfloat16)
    train(model, optimizer, rank, 1, 20)
    return tensors(model, optimizer, local)


@scenario
def blocks_and_shards(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD,))
    dtypes, scales = {}, {}
    for name, shape, placement in (
        ("halves of 16 blocks", (64, 128), Shard(0)),
        ("halves of 8 blocks", (32, 128), Shard(0)),
        ("halves between blocks", (66, 130), Shard(0)),
        ("odd rows", (65, 128), Shard(0)),
        ("columns", (64, 128), Shard(1)),
        ("replicated", (65, 128), Replicate()),
        ("small", (15, 256), Shard(0)),
        ("vector", (8192,), Shard(0)),
    ):
        p = nn.Parameter(distribute_tensor(torch.ones(shape), mesh, [placement]))
        p.grad = distribute_tensor(torch.ones(shape), mesh, [placement])
        optimizer = AdaMod([p], state_dtype="int8")
        optimizer.step()
        state = optimizer.state[p]
        dtypes[name] = {str(state[key].dtype) for key in STATES}
        scales[name] = [tuple(state[f"{key}_scale"].shape) for key in STATES if f"{key}_scale" in state]
    return {"dtypes": dtypes, "scales": scales}


@scenario
def gradients_that_are_placed_otherwise(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD,))
    start, gradient = (torch.randn(6, 10, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    alone = nn.Parameter(start.clone())
    alone.grad = gradient
    AdaMod([alone], lr=0.1).step()
    results = {"alone": alone.detach()}
    grads = {
        "replicated": distribute_tensor(gradient, mesh, [Replicate()]),
        "sharded": distribute_tensor(gradient, mesh, [Shard(0)]),
        "partial": DTensor.from_local(gradient / WORLD, mesh, [Partial()]),
    }
    for name, grad in grads.items():
        p = nn.Parameter(distribute_tensor(start, mesh, [Shard(1)]))
        p.grad = grad
        AdaMod([p], lr=0.1).step()
        results[name] = p.detach().full_tensor()
    return results


@scenario
def full_state_dicts(rank: int) -> dict[str, Any]:
    """Saved whole, loaded into new shards and into one process, and trained on."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    results = {}
    for name, state_dtype in (("float32", None), ("bf16", torch.bfloat16), ("int8", "int8")):
        for broadcast in (False, True):
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
            model = sharded(net())
            optimizer = AdaMod(model.parameters(), lr=1e-2, beta3=0.9, state_dtype=state_dtype)
            train(model, optimizer, rank, 1, 3)
            saved = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
            weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
            whole = copy.deepcopy(saved)
            again = sharded(net())
            resumed = AdaMod(again.parameters(), lr=1e-3, state_dtype=state_dtype)
            given = rank == 0 or not broadcast
            set_model_state_dict(again, weights if given else {}, options=options)
            set_optimizer_state_dict(again, resumed, saved if given else {}, options=options)
            loaded, before = tensors(again, resumed, local), tensors(model, optimizer, local)
            train(model, optimizer, rank, 4, 6)
            train(again, resumed, rank, 4, 6)
            results[f"{name}, {'from the first' if broadcast else 'everywhere'}"] = {
                "lr": resumed.param_groups[0]["lr"],
                "before": before,
                "loaded": loaded,
                "trained": tensors(model, optimizer, local),
                "resumed": tensors(again, resumed, local),
            }
        plain = net()
        single = AdaMod(plain.parameters(), state_dtype=state_dtype)
        set_optimizer_state_dict(plain, single, whole)
        results[f"{name}, alone"] = {"loaded": tensors(plain, single), "whole": whole["state"]}

        plain = net()
        single = AdaMod(plain.parameters(), state_dtype=state_dtype)
        for step in (1, 2):
            loss_of(plain, batch(step, 0)).backward()
            single.step()
        alone = tensors(plain, single)
        saved = get_optimizer_state_dict(plain, single, options=StateDictOptions(full_state_dict=True))
        for broadcast in (False, True):
            model = sharded(net())
            optimizer = AdaMod(model.parameters(), state_dtype=state_dtype)
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
            given = rank == 0 or not broadcast
            set_optimizer_state_dict(model, optimizer, copy.deepcopy(saved) if given else {}, options=options)
            results[f"{name}, {'from the first' if broadcast else 'everywhere'} to shards"] = {
                "alone": alone,
                "loaded": tensors(model, optimizer),
            }
    return results


@scenario
def state_dicts_between_shards_and_one_process(rank: int) -> dict[str, Any]:
    results = {}
    for name, state_dtype in (("float32", None), ("bf16", torch.bfloat16), ("int8", "int8")):
        model, plain, back = sharded(net()), net(), sharded(net())
        optimizer, single, returned = (AdaMod(m.parameters(), state_dtype=state_dtype) for m in (model, plain, back))
        train(model, optimizer, rank, 1, 3)
        single.load_state_dict(optimizer.state_dict())
        returned.load_state_dict(single.state_dict())
        before = tensors(model, optimizer)
        there = tensors(plain, single)
        again = tensors(back, returned)
        train(back, returned, rank, 4, 5)
        results[name] = {
            key: {name: x for name, x in found.items() if "exp_avg" in name or "step" in name}
            for key, found in (("before", before), ("there", there), ("again", again))
        }
    return results


@scenario
def shards_that_do_not_fit(rank: int) -> dict[str, Any]:
    from torch.distributed.tensor import Replicate

    model, other = sharded(net()), sharded(net())
    optimizer, target = (AdaMod(m.parameters(), state_dtype="int8") for m in (model, other))
    train(model, optimizer, rank, 1, 3)
    train(other, target, rank, 1, 1)
    before = tensors(other, target, local)
    checkpoint = optimizer.state_dict()
    state = checkpoint["state"][0]
    state["exp_avg_scale"] = state["exp_avg_scale"].redistribute(placements=[Replicate()])
    try:
        target.load_state_dict(checkpoint)
        text = "no error"
    except ValueError as error:
        text = str(error)
    return {"text": text, "before": before, "after": tensors(other, target, local)}


@scenario
def scaled_gradients(rank: int) -> dict[str, Any]:
    """A gradient that is not finite on one process only."""
    model, plain = sharded(net()), sharded(net())
    optimizer, unscaled = (AdaMod(m.parameters(), lr=1e-2, beta3=0.9) for m in (model, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(1, 6):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch(step, rank))).backward()
        if step == 3 and rank == 1:
            local(model.wide.weight.grad)[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if step != 3:
            unscaled.zero_grad()
            loss_of(plain, batch(step, rank)).backward()
            unscaled.step()
    return {"scaled": tensors(model, optimizer), "plain": tensors(plain, unscaled), "scale": scaler.get_scale()}


@scenario
def counts_of_shards(rank: int) -> dict[str, Any]:
    model = sharded(net())
    optimizer = AdaMod(model.named_parameters(), lr=1e-2)
    optimizer.bound_stats(True)
    train(model, optimizer, rank, 1, 3)
    stats = optimizer.bound_stats()
    return {
        "counted": {one.name: (one.steps, one.elements, int(one.s.sum()) == one.sampled) for one in stats.values()},
        "expected": {name: (3, 3 * local(p).numel(), True) for name, p in model.named_parameters() if local(p).numel()},
    }


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=WORLD, timeout=timedelta(seconds=150)
    )
    for name, function in SCENARIOS.items():
        try:
            result = {"result": function(rank)}
        except Exception:
            result = {"error": traceback.format_exc()}
        torch.save(result, folder / f"{name}.{rank}")
    torch.distributed.destroy_process_group()


# --- in pytest ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """The results of a scenario, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(folder), str(rank)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(outputs)

    def of(name: str) -> list[Any]:
        found = [torch.load(folder / f"{name}.{rank}", weights_only=True) for rank in range(WORLD)]
        assert not any("error" in one for one in found), "\n".join(one.get("error", "") for one in found)
        return [one["result"] for one in found]

    return of


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0) -> None:
    assert list(actual) == list(expected)
    for name, x in expected.items():
        torch.testing.assert_close(
            actual[name], x, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_replicas_with_stochastic_rounding_agree_bit_for_bit_with_one_process(results: Any):
    first, second = results("ddp")
    for name, one in first.items():
        assert_equal(second[name]["replica"], one["replica"])
        assert_equal(one["replica"], one["alone"])
        assert one["replica"]["wide.weight.step"] == 100
    assert first["bf16-int8"]["replica"]["wide.weight"].dtype == torch.bfloat16
    assert first["bf16-int8"]["replica"]["wide.weight.exp_avg"].dtype == torch.uint8


@pytest.mark.parametrize("kind", ["AdaMod", "DiffMod"])
def test_shards_make_what_one_process_makes(results: Any, kind: str):
    for rank, result in enumerate(results("fsdp")):
        one = result[kind]
        assert_equal(one["together"], one["alone"], tolerance=1e-5)
        assert all(one["placed"].values())
        assert len(one["placed"]) >= 6 * 3
        assert one["shards"]["odd.bias"] == (16, 15)[rank]
        assert one["shards"]["one.weight"] == (31, 0)[rank]


@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_every_shard_draws_its_own_numbers(results: Any, name: str):
    for rank, result in enumerate(results("shards_draw_by_their_coordinate")):
        one = result[name]
        for x, y in zip(one["ours"], one["same seed"], strict=True):
            assert torch.equal(x, y), rank
        assert any(not torch.equal(x, y) for x, y in zip(one["ours"], one["other seed"], strict=True))
    if name == "int8":
        assert one["ours"][1].dtype == torch.uint8


def test_replicas_of_shards_draw_the_same_numbers(results: Any):
    first, second = results("replicas_of_shards")
    assert_equal(second, first)


def test_8_bit_states_need_shards_of_whole_blocks(results: Any):
    for result in results("blocks_and_shards"):
        quantised = {name for name, dtypes in result["dtypes"].items() if dtypes == {"torch.uint8"}}
        assert quantised == {"halves of 16 blocks", "halves of 8 blocks", "replicated", "vector"}
        assert {name for name, dtypes in result["dtypes"].items() if dtypes == {"torch.float32"}} == {
            "halves between blocks", "odd rows", "columns", "small",
        }  # fmt: skip
        assert result["scales"]["halves of 16 blocks"] == result["scales"]["vector"] == [(32,)] * 3
        assert result["scales"]["replicated"] == [(33,)] * 3


@pytest.mark.parametrize("name", ["replicated", "sharded", "partial"])
def test_gradients_that_are_placed_otherwise_are_brought_to_the_parameter(results: Any, name: str):
    for result in results("gradients_that_are_placed_otherwise"):
        torch.testing.assert_close(result[name], result["alone"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("state_dtype", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("how", ["everywhere", "from the first"])
def test_a_full_state_dict_comes_back_bit_for_bit(results: Any, state_dtype: str, how: str):
    for result in results("full_state_dicts"):
        one = result[f"{state_dtype}, {how}"]
        assert one["lr"] == 1e-2
        assert_equal(one["loaded"], one["before"])
        assert_equal(one["resumed"], one["trained"])


@pytest.mark.parametrize("state_dtype", ["float32", "bf16", "int8"])
def test_a_full_state_dict_serves_one_process(results: Any, state_dtype: str):
    for result in results("full_state_dicts"):
        one = result[f"{state_dtype}, alone"]
        for name, state in one["whole"].items():
            for key, x in state.items():
                assert torch.equal(one["loaded"][f"{name}.{key}"], x), (name, key)
    if state_dtype == "int8":
        assert one["loaded"]["wide.weight.exp_avg"].dtype == torch.uint8


@pytest.mark.parametrize("state_dtype", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("how", ["everywhere", "from the first"])
def test_a_state_dict_of_one_process_serves_shards(results: Any, state_dtype: str, how: str):
    for result in results("full_state_dicts"):
        one = result[f"{state_dtype}, {how} to shards"]
        states = [name for name in one["alone"] if "exp_avg" in name or "step" in name]
        assert len(states) >= 6 * 4
        assert_equal({name: one["loaded"][name] for name in states}, {name: one["alone"][name] for name in states})


@pytest.mark.parametrize("state_dtype", ["float32", "bf16", "int8"])
def test_state_dicts_move_between_shards_and_one_process(results: Any, state_dtype: str):
    from adamod._reference import decode

    def values(found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: decode(x.flatten(), found[f"{name}_scale"].view(torch.int16), signed=name.endswith("exp_avg")).view(
                x.shape
            )
            if x.dtype == torch.uint8
            else x
            for name, x in found.items()
            if not name.endswith("_scale")
        }

    for result in results("state_dicts_between_shards_and_one_process"):
        before, there, again = (values(result[state_dtype][key]) for key in ("before", "there", "again"))
        assert list(before) == list(there) == list(again)
        for name, x in before.items():
            largest = x.abs().max().item() * 2**-15 if state_dtype == "int8" else 0
            for y in (there[name], again[name]):
                torch.testing.assert_close(y, x, rtol=0, atol=largest)


def test_8_bit_states_whose_blocks_do_not_fit_the_shards_are_refused(results: Any):
    for result in results("shards_that_do_not_fit"):
        assert result["text"] == (
            'state_dict["state"][0]["exp_avg_scale"] must have 16 scales, one per 256 elements of this shard of '
            "parameter 0, got 32; gather the checkpoint with full_state_dict=True before it is loaded on other shards"
        )
        assert_equal(result["after"], result["before"])


def test_a_gradient_that_is_not_finite_on_one_process_stops_both(results: Any):
    for result in results("scaled_gradients"):
        assert result["scale"] == 2.0**9
        assert result["scaled"]["wide.weight.step"] == 4
        assert_equal(result["scaled"], result["plain"])


def test_shards_count_their_own_elements(results: Any):
    for result in results("counts_of_shards"):
        assert result["counted"] == result["expected"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
