"""Many processes train one model: its parameters and optimizer are sharded (FSDP2), the rows of a batch dealt out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from remanence.errors import InputError

Row = TypeVar("Row")


def start() -> torch.device:
    """This process's device; under `torchrun` it joins the others (gloo for what is on CPUs, nccl on accelerators)."""
    has_gpu = torch.cuda.is_available()
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo")
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cuda" if has_gpu else "cpu")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Ends a process among many when all are done; alone it returns.

    Not by way of the interpreter's end, where threads of torch abort a process now and then (seen with torch 2.13).
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextmanager
def first() -> Iterator[None]:
    """The first process does it, then the others, who find its files."""
    if rank():
        wait()
    yield
    if not rank():
        wait()


def decided(choice: bool) -> bool:
    """What the first process has chosen: clocks differ."""
    return bool(mean(torch.tensor(float(choice and not rank()))) > 0)


def own(rows: Sequence[Row]) -> list[Row]:
    """This process's rows of a batch that every process has drawn. InputError where there are fewer than processes."""
    if len(rows) < size():
        raise InputError(f"{len(rows)} rows cannot be dealt out to {size()} processes", "give the phase more rows")
    return list(rows[rank() :: size()])


def mean(value: Tensor) -> Tensor:
    """Over all processes, without gradient.

    A loss is a sum over this process's rows divided by the mean of all counts: FSDP averages gradients, so their mean
    is that of the whole batch.
    """
    value = value.detach()
    if size() == 1:
        return value
    value = value.clone().float()
    dist.all_reduce(value)
    return value / size()


def average(loss_N: Tensor) -> Tensor:
    """Mean of what all processes have (0 where they have nothing), with this process's gradient."""
    count = mean(torch.tensor(float(len(loss_N)), device=loss_N.device))
    return loss_N.sum() / count.clamp(min=1.0 / size())


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a run of one process does instead of `Sharded`."""
    return function(*arguments)


class Sharded(nn.Module):
    """Calls a function with the whole parameters at hand; outside of it every process holds its shards.

    One group for the whole model: a writing stops in the middle of a forward pass, and its keys go into the loss
    without leaving their layer by its output. Hooks around every layer lose gradients then (measured: a norm of 5.2
    instead of 9.2).
    """

    def __init__(self, model: nn.Module, dtype: str) -> None:
        super().__init__()
        self.model = model
        mesh = init_device_mesh(next(model.parameters()).device.type, (size(),))
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if dtype == "bfloat16" else MixedPrecisionPolicy()
        fully_shard(self, mesh=mesh, mp_policy=policy)

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)
