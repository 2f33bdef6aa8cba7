"""Two processes with gloo on CPU: replicas stay equal, each may ascend along its own gradient, shards make what one
process makes, and checkpoints come through.

Run by pytest this file starts itself twice as a program. Each process goes through all functions marked as scenarios
and saves what they return; the tests look at the results of both.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gasam import GASAM, GSAM, MSAM, WSAM, FriendlySAM, LookSAM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

WORLD = 2
SCENARIOS: dict[str, Callable[[int], Any]] = {}


def scenario(function: Callable[[int], Any]) -> Callable[[int], Any]:
    SCENARIOS[function.__name__] = function
    return function


# --- in the processes -----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Layers that two processes can halve, that they cannot, and one of which the second process gets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.odd, self.one = nn.Linear(16, 32), nn.Linear(32, 7), nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.odd(self.wide(x).tanh()).tanh())


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def net(kind: type[nn.Module] = Net, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return kind().to(dtype)


def batch(step: int, rank: int | None = None) -> Tensor:
    """That of a process in a step, or of all processes."""
    if rank is None:
        return torch.cat([batch(step, each) for each in range(WORLD)])
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(100 * step + rank))


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    x = x.to(next(model.parameters()).dtype)
    return (model(x) - x[:, :1]).pow(2).mean()


def train(model: nn.Module, optimizer: GASAM, rank: int | None, steps: Iterable[int]) -> None:
    for step in steps:

        def closure(step: int = step) -> Tensor:
            loss = loss_of(model, batch(step, rank))
            loss.backward()
            return loss

        optimizer.step(closure)


def full(x: Any) -> Any:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def local(x: Any) -> Any:
    return x.to_local() if hasattr(x, "to_local") else x


def tensors(model: nn.Module, optimizer: GASAM, of: Callable[[Any], Any] = full) -> dict[str, Tensor]:
    """Parameters, buffers and states by name."""
    found = {name: b.clone() for name, b in model.named_buffers()}
    for name, p in model.named_parameters():
        found[name] = of(p.detach()).clone()
        found |= {f"{name}.{key}": of(x).clone() for key, x in optimizer.state.get(p, {}).items() if x is not None}
    return found


class Counter:
    """Counts what DDP reduces."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self.calls = 0
        model.register_comm_hook(None, self.reduce)

    def reduce(self, state, bucket):  # torch refuses other annotations
        self.calls += 1
        reduced = torch.distributed.all_reduce(bucket.buffer().div_(WORLD), async_op=True).get_future()
        return reduced.then(lambda future: future.value()[0])


@scenario
def each_its_own_ascent(rank: int) -> dict[str, Any]:
    """Against one process, which takes the mean of the gradients at the two perturbed points."""
    results = {}
    for name, options in (("given", {}), ("steps", {"steps": 2}), ("watched", {})):
        model, alone = net(), net()
        wrapped = DistributedDataParallel(model)
        counter = Counter(wrapped)
        optimizer = GASAM(
            model.named_parameters() if name == "watched" else wrapped,
            torch.optim.SGD, 0.1, lr=0.05, momentum=0.9, reference="global", **options,
        )  # fmt: skip
        if name == "watched":
            optimizer.watch(wrapped)
        train(wrapped, optimizer, rank, range(20))
        strengths = torch.stack(list(optimizer.strengths().values()))

        single = GASAM(alone, torch.optim.SGD, 0.1, lr=0.05, momentum=0.9, reference="global", **options)
        for step in range(20):
            total = [torch.zeros_like(p) for p in alone.parameters()]
            for each in range(WORLD):
                x = batch(step, each)
                for _ in range(options.get("steps", 1)):
                    single.zero_grad()
                    loss_of(alone, x).backward()
                    single.perturb()
                single.zero_grad()
                loss_of(alone, x).backward()
                for sum_, p in zip(total, alone.parameters(), strict=True):
                    sum_ += p.grad / WORLD
                single.restore()
            for sum_, p in zip(total, alone.parameters(), strict=True):
                p.grad = sum_
            single.step()
        results[name] = {
            "replica": tensors(model, optimizer),
            "alone": tensors(alone, single),
            "reductions": counter.calls,
            "strengths": strengths,
        }
    return results


@scenario
def thousand_steps(rank: int) -> dict[str, Any]:
    """In float32 and with statistics, which each process has its own of."""
    model = net(Normed, torch.float32)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = GASAM(wrapped, torch.optim.SGD, lr=0.02, momentum=0.9)
    train(wrapped, optimizer, rank, range(1000))
    return {"replica": tensors(model, optimizer), "strengths": torch.stack(list(optimizer.strengths().values()))}


@scenario
def one_ascent_of_all(rank: int) -> dict[str, Any]:
    results = {}
    for name, options in (
        ("sync_ascent", {"sync_ascent": True}),
        ("only", {"sync_ascent": True, "only": lambda name, p: "odd" in name}),
        ("every", {"sync_ascent": True, "every": 3}),
        ("average", {"risk": "average", "steps": 2}),
        ("hidden", {}),
    ):
        model, alone = net(), net()
        wrapped = DistributedDataParallel(model)
        counter = Counter(wrapped)
        params = model.named_parameters() if name == "hidden" else wrapped
        optimizer = GASAM(params, torch.optim.AdamW, 0.1, lr=0.01, **options)
        single = GASAM(alone, torch.optim.AdamW, 0.1, lr=0.01, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(wrapped, optimizer, rank, range(10))
        train(alone, single, None, range(10))
        results[name] = {
            "replica": tensors(model, optimizer),
            "alone": tensors(alone, single),
            "reductions": counter.calls,
            "warnings": [str(one.message) for one in caught if "DistributedDataParallel" in str(one.message)],
        }
    return results


@scenario
def only_some_ascend(rank: int) -> dict[str, Any]:
    model = net(Normed)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    counter = Counter(wrapped)
    optimizer = GASAM(wrapped, torch.optim.SGD, 0.1, lr=0.05, only="norm")
    moved: set[str] = set()
    gradients: list[int] = []
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def closure() -> Tensor:
        if optimizer.is_perturbed:
            moved.update(name for name, p in model.named_parameters() if not torch.equal(p, before[name]))
        loss = loss_of(wrapped, batch(0, rank))
        loss.backward()
        gradients.append(sum(p.grad is not None for p in model.parameters()))
        return loss

    optimizer.step(closure)
    train(wrapped, optimizer, rank, range(1, 10))
    return {
        "replica": {name: p.detach() for name, p in model.named_parameters()},
        "moved": sorted(moved),
        "gradients": gradients,
        "reductions": counter.calls,
        "batches": int(model[1].num_batches_tracked),
    }


@scenario
def an_ascent_that_one_cannot_take(rank: int) -> dict[str, Any]:
    model = net()
    wrapped = DistributedDataParallel(model)
    optimizer = GASAM(wrapped, torch.optim.SGD, 0.1, lr=0.05)
    calls: list[int] = []

    def closure() -> Tensor:
        loss = loss_of(wrapped, batch(0, rank))
        if rank == 1 and not calls:
            loss = loss * torch.inf
        calls.append(1)
        loss.backward()
        return loss

    optimizer.step(closure)
    train(wrapped, optimizer, rank, range(1, 3))
    return {"replica": tensors(model, optimizer), "skipped": int(optimizer.skipped_ascents)}


FAMILY: dict[str, dict[str, Any]] = {
    "default": {},
    "SAM": {"segments": "global", "strength_exponent": 0.0, "size_exponent": 0.0},
    "groups": {"segments": "group", "reference": "global", "norm": float("inf")},
    "ASAM": {"segments": "global", "strength_exponent": 0.0, "size_exponent": 0.0, "adaptive": True, "rho": 0.5},
    "layers": {"strength_exponent": 0.0, "size_exponent": 0.0, "adaptive": "layer"},
    "steps": {"steps": 3, "risk": "average", "adaptive": True},
    "steps of signs": {"steps": 2, "norm": float("inf")},
    "only": {"only": lambda name, p: "odd" in name or "one" in name},
}


def sharded(model: nn.Module, mesh: Any = None) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=mesh)


@scenario
def shards(rank: int) -> dict[str, Any]:
    results = {}
    for name, options in FAMILY.items():
        for base, lr in ((torch.optim.SGD, 0.05), (torch.optim.AdamW, 0.01)):
            model, alone = sharded(net()), net()
            optimizer, single = (GASAM(m, base, **{"rho": 0.1, **options}, lr=lr) for m in (model, alone))
            train(model, optimizer, rank, range(5))
            train(alone, single, None, range(5))
            results[f"{name}, {base.__name__}"] = {
                "together": tensors(model, optimizer),
                "alone": tensors(alone, single),
                "strengths": {key: s.clone() for key, s in optimizer.strengths().items()},
                "strengths alone": {key: s.clone() for key, s in single.strengths().items()},
                "shards": {key: local(p).numel() for key, p in model.named_parameters()},
            }
    return results


PRESETS: dict[str, tuple[type[GASAM], dict[str, Any]]] = {
    "GSAM": (GSAM, {}),
    "WSAM": (WSAM, {}),
    "WSAM, coupled": (WSAM, {"decouple": False}),
    "FriendlySAM": (FriendlySAM, {}),
    "LookSAM": (LookSAM, {"k": 3}),
    "MSAM": (MSAM, {"momentum": 0.9}),
}


@scenario
def presets(rank: int) -> dict[str, Any]:
    results = {}
    for name, (kind, options) in PRESETS.items():
        models = {"alone": net(), "shards": sharded(net()), "together": net(), "apart": net()}
        found = {}
        for how, model in models.items():
            wrapped = DistributedDataParallel(model) if how in {"together", "apart"} else model
            sync = {"sync_ascent": True} if how == "together" else {}
            optimizer = kind(wrapped, torch.optim.SGD, 0.1, lr=0.05, **sync, **options)
            train(wrapped, optimizer, None if how == "alone" else rank, range(7))
            found[how] = tensors(model, optimizer)
        results[name] = found
    return results


@scenario
def replicas_of_shards(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh

    results = {}
    for shape in ((WORLD, 1), (1, WORLD)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
        model, alone = sharded(net(), mesh), net()
        optimizer, single = (GASAM(m, torch.optim.SGD, 0.1, lr=0.05) for m in (model, alone))
        train(model, optimizer, rank, range(5))
        train(alone, single, None, range(5))
        results[str(shape)] = {"together": tensors(model, optimizer), "alone": tensors(alone, single)}
    return results


@scenario
def shards_with_clipped_gradients(rank: int) -> dict[str, Any]:
    """Two phases, and a gradient that is clipped before the base steps."""

    def run(model: nn.Module, optimizer: GASAM, rank: int | None) -> list[float]:
        norms = []
        for step in range(5):
            loss_of(model, batch(step, rank)).backward()
            optimizer.first_step(zero_grad=True)
            loss_of(model, batch(step, rank)).backward()
            norms.append(float(full(nn.utils.clip_grad_norm_(model.parameters(), 0.1))))
            optimizer.second_step(zero_grad=True)
        return norms

    model, alone = sharded(net()), net()
    optimizer, single = (GASAM(m, torch.optim.SGD, 0.1, lr=0.05, momentum=0.9) for m in (model, alone))
    norms = run(model, optimizer, rank)
    norms_alone = run(alone, single, None)
    return {
        "together": tensors(model, optimizer),
        "alone": tensors(alone, single),
        "norms": norms,
        "norms alone": norms_alone,
    }


@scenario
def checkpoints(rank: int) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    results = {}
    for full_state_dict in (False, True):
        for base, kwargs in ((torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {})):
            options = StateDictOptions(full_state_dict=full_state_dict)
            model = sharded(net())
            optimizer = GASAM(model, base, 0.1, lr=0.01, every=2, **kwargs)
            train(model, optimizer, rank, range(3))
            optimizer.zero_grad()
            weights, states = copy.deepcopy(get_state_dict(model, optimizer, options=options))
            own = optimizer.state_dict()["gasam"]
            before = tensors(model, optimizer, local)

            again = sharded(net())
            resumed = GASAM(again, base, 0.7, lr=0.5, every=2, **kwargs)
            set_state_dict(again, resumed, model_state_dict=weights, optim_state_dict=states, options=options)
            resumed.load_state_dict({**resumed.state_dict(), "gasam": own})
            loaded = tensors(again, resumed, local)
            group = {key: resumed.param_groups[0][key] for key in ("lr", "rho")}
            train(model, optimizer, rank, range(3, 7))
            train(again, resumed, rank, range(3, 7))
            results[f"{base.__name__}, {'full' if full_state_dict else 'sharded'}"] = {
                "before": before,
                "loaded": loaded,
                "group": group,
                "trained": tensors(model, optimizer, local),
                "resumed": tensors(again, resumed, local),
            }
    return results


@scenario
def gradients_that_are_placed_otherwise(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD,))
    start, gradient = (torch.randn(6, 10, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    alone = nn.Parameter(start.clone())
    alone.grad = gradient
    single = GASAM([alone], torch.optim.SGD, lr=0.1)
    single.perturb()
    results = {"alone": alone.detach().clone()}
    grads = {
        "replicated": distribute_tensor(gradient, mesh, [Replicate()]),
        "sharded": distribute_tensor(gradient, mesh, [Shard(0)]),
        "partial": DTensor.from_local(gradient / WORLD, mesh, [Partial()]),
    }
    for name, grad in grads.items():
        p = nn.Parameter(distribute_tensor(start, mesh, [Shard(1)]))
        p.grad = grad
        optimizer = GASAM([p], torch.optim.SGD, lr=0.1)
        optimizer.perturb()
        results[name] = p.detach().full_tensor()
    return results


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
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(
            actual[name], x, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", ["given", "steps", "watched"])
def test_each_process_ascends_along_its_own_gradient_with_one_reduction_a_step(results: Any, name: str):
    first, second = (result[name] for result in results("each_its_own_ascent"))
    assert_equal(second["replica"], first["replica"])
    assert not torch.equal(first["strengths"], second["strengths"])
    for one in (first, second):
        assert_equal(one["replica"], one["alone"], tolerance=1e-9)
        assert one["reductions"] == 20


def test_replicas_are_equal_after_a_thousand_steps_of_ascents_of_their_own(results: Any):
    first, second = results("thousand_steps")
    assert not torch.equal(first["strengths"], second["strengths"])
    own = {name for name in first["replica"] if "running" in name}
    assert len(own) == 2
    assert_equal(*({k: x for k, x in one["replica"].items() if k not in own} for one in (first, second)))
    for name in own:
        assert not torch.equal(first["replica"][name], second["replica"][name])
    assert first["replica"]["1.num_batches_tracked"] == 1000


@pytest.mark.parametrize("name", ["sync_ascent", "only", "every", "average", "hidden"])
def test_processes_that_ascend_together_make_what_one_process_makes(results: Any, name: str):
    first, second = (result[name] for result in results("one_ascent_of_all"))
    assert_equal(second["replica"], first["replica"])
    for one in (first, second):
        assert_equal(one["replica"], one["alone"], tolerance=1e-9)
        assert one["reductions"] == {"every": 14, "average": 30}.get(name, 20)
        assert len(one["warnings"]) == (name == "hidden")
    if name == "hidden":
        assert "call watch(module)" in one["warnings"][0]


def test_parameters_that_are_not_perturbed_do_not_hold_up_the_other_process(results: Any):
    first, second = results("only_some_ascend")
    assert_equal(second["replica"], first["replica"])
    for one in (first, second):
        assert one["moved"] == ["1.bias", "1.weight"]
        assert one["gradients"] == [2, 6]
        assert one["reductions"] == one["batches"] == 10


def test_replicas_stay_equal_where_one_process_cannot_ascend(results: Any):
    first, second = results("an_ascent_that_one_cannot_take")
    assert_equal(second["replica"], first["replica"])
    assert [first["skipped"], second["skipped"]] == [0, 1]
    assert all(x.isfinite().all() for x in first["replica"].values())


@pytest.mark.parametrize("base", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", FAMILY)
def test_shards_make_what_one_process_makes(results: Any, name: str, base: str):
    for rank, result in enumerate(results("shards")):
        one = result[f"{name}, {base}"]
        assert_equal(one["together"], one["alone"], tolerance=1e-9)
        assert_equal(one["strengths"], one["strengths alone"], tolerance=1e-9)
        assert one["shards"]["odd.bias"] == (4, 3)[rank]
        assert one["shards"]["one.weight"] == (7, 0)[rank]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_the_same_step_everywhere(results: Any, name: str):
    first, second = (result[name] for result in results("presets"))
    assert_equal(second["apart"], first["apart"])
    for one in (first, second):
        for how in ("shards", "together"):
            assert_equal(one[how], one["alone"], tolerance=1e-9)


@pytest.mark.parametrize("shape", ["(2, 1)", "(1, 2)"])
def test_replicas_of_shards_count_every_element_once(results: Any, shape: str):
    for result in results("replicas_of_shards"):
        assert_equal(result[shape]["together"], result[shape]["alone"], tolerance=1e-9)


def test_gradients_of_shards_are_clipped_between_the_calls(results: Any):
    for one in results("shards_with_clipped_gradients"):
        assert_equal(one["together"], one["alone"], tolerance=1e-9)
        assert one["norms"] == pytest.approx(one["norms alone"], rel=1e-9)
        assert min(one["norms"]) > 0.1


@pytest.mark.parametrize("how", ["sharded", "full"])
@pytest.mark.parametrize("base", ["SGD", "Adam"])
def test_a_checkpoint_of_shards_resumes_bit_for_bit(results: Any, base: str, how: str):
    for result in results("checkpoints"):
        one = result[f"{base}, {how}"]
        assert one["group"] == {"lr": 0.01, "rho": 0.1}
        assert_equal(one["loaded"], one["before"])
        assert_equal(one["resumed"], one["trained"])
        assert any(not torch.equal(x, one["before"][name]) for name, x in one["trained"].items())


@pytest.mark.parametrize("name", ["replicated", "sharded", "partial"])
def test_gradients_that_are_placed_otherwise_are_brought_to_the_parameter(results: Any, name: str):
    for result in results("gradients_that_are_placed_otherwise"):
        torch.testing.assert_close(result[name], result["alone"], rtol=1e-6, atol=1e-7)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
