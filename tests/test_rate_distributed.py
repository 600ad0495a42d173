"""The rate term on two processes does what it does on one."""

import contextlib
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from egret.qat import StraightThrough
from egret.rate import RateRegularizer

STEPS = 25
KINDS = ("ddp", "ddp-loss", "ddp-rounded", "fsdp", "fsdp-loss", "fsdp-rounded")


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _train(kind: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Train on this process's share of every batch; return the whole weights and what was seen."""
    torch.manual_seed(3)
    # The last layer has one row: with two processes one of them has no part of it.
    layers = nn.Sequential(nn.Linear(12, 31), nn.Tanh(), nn.Linear(31, 1))
    x = torch.randn(64, 12)
    y = torch.tanh(x[:, :1] - x[:, 1:2])
    model: nn.Module = layers
    if kind.startswith("ddp"):
        model = DistributedDataParallel(layers)
    if kind.startswith("fsdp"):
        fully_shard(layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    in_loss = kind.endswith("loss")
    with torch.no_grad():
        # Behind a pass without gradients FSDP2 keeps weights whole.
        model(x)
    target: dict = {"lam": 0.5} if in_loss else {"target_bits": 2.0, "steps": STEPS}
    regularizer = RateRegularizer(layers, **target)
    seen = []
    is_rounded = kind.endswith("rounded")
    rounding = StraightThrough(layers, 5) if is_rounded else contextlib.nullcontext()
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.no_grad():
            model(x)
        with rounding:
            loss = nn.functional.mse_loss(model(x[rank::world]), y[rank::world])
            (loss + regularizer.loss() if in_loss else loss).backward()
        optimizer.step()
        if not in_loss:
            regularizer.step(optimizer)
        seen.append([regularizer.nu, regularizer.lam, regularizer.bits_per_weight()])
    with torch.no_grad():
        outputs = [model(x)]
        if isinstance(rounding, StraightThrough):
            with rounding:
                outputs.append(model(x))
            outputs.append(model(x))
            rounding.apply()
            outputs.append(model(x))
    for module in layers.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    state = {name: _whole(p.detach()).clone() for name, p in layers.named_parameters()}
    return state | {
        "outputs": torch.stack(outputs),
        "seen": torch.tensor(seen, dtype=torch.float64),
    }


def _process(rank: int, port: int, kinds: list[str], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for kind in kinds:
        torch.save(_train(kind, rank, 2), Path(folder) / f"{kind}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kinds = list(KINDS)
    torch.multiprocessing.spawn(_process, (port, kinds, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(kind: str, outcomes: Path) -> None:
    with torch.random.fork_rng():
        expected = _train(kind.replace(kind.partition("-")[0], "one"), 0, 1)
    for rank in (0, 1):
        found = torch.load(outcomes / f"{kind}-{rank}.pt")
        assert found.keys() == expected.keys()
        nu, others = found["seen"][:, 0], found["seen"][:, 1:]
        torch.testing.assert_close(nu, expected["seen"][:, 0], rtol=0, atol=1e-6)
        torch.testing.assert_close(others, expected["seen"][:, 1:], rtol=1e-5, atol=0)
        for name, weights in expected.items():
            if name != "seen":
                torch.testing.assert_close(found[name], weights, rtol=1e-5, atol=1e-6)
