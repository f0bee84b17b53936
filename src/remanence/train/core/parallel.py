"""Several processes train one model: FSDP2 shards parameters and optimizer, each process reads a part of a batch."""

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

ExampleT = TypeVar("ExampleT")


def start() -> torch.device:
    """The device of this process, which joins the others under `torchrun` (gloo on CPUs, nccl on accelerators)."""
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
    """Ends the process once all processes are done; a single process returns.

    It does not use the normal exit of the interpreter, where threads of torch sometimes abort (seen with torch 2.13).
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextmanager
def first() -> Iterator[None]:
    """The first process runs the block, then the others, which find its files."""
    if rank():
        wait()
    yield
    if not rank():
        wait()


def decided(choice: bool) -> bool:
    """The choice of the first process, for all processes, since their clocks differ."""
    return bool(mean(torch.tensor(float(choice and not rank()))) > 0)


def own(examples: Sequence[ExampleT]) -> list[ExampleT]:
    """This process's part of a batch that every process has drawn. InputError if there are fewer than processes."""
    if len(examples) < size():
        raise InputError(
            f"{len(examples)} examples cannot be divided among {size()} processes", "give the phase more rows"
        )
    return list(examples[rank() :: size()])


def mean(value: Tensor) -> Tensor:
    """The mean of `value` over all processes, detached.

    A loss is the sum over this process's examples divided by the mean of all counts: FSDP averages the gradients, so
    the result is the gradient of the whole batch.
    """
    value = value.detach()
    if size() == 1:
        return value
    value = value.clone().float()
    dist.all_reduce(value)
    return value / size()


def average(loss_N: Tensor) -> Tensor:
    """Mean over the losses of all processes (0 if there are none), with the gradient of this process."""
    count = mean(torch.tensor(float(len(loss_N)), device=loss_N.device))
    return loss_N.sum() / count.clamp(min=1.0 / size())


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `function`: what a single process uses instead of `Sharded`."""
    return function(*arguments)


class Sharded(nn.Module):
    """Calls a function with all parameters gathered; outside of the call each process holds its shards.

    The whole model is one FSDP group. Writing a memory stops in the middle of a forward pass, and its keys reach the
    loss without passing the output of their layer; with hooks around every layer gradients would be lost (measured: a
    norm of 5.2 instead of 9.2).
    """

    def __init__(self, model: nn.Module, dtype: str) -> None:
        super().__init__()
        self.model = model
        mesh = init_device_mesh(next(model.parameters()).device.type, (size(),))
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if dtype == "bfloat16" else MixedPrecisionPolicy()
        fully_shard(self, mesh=mesh, mp_policy=policy)

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)
