"""Tensors of one layer, copied to the model's device while the layer before it computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class LayerPrefetch:
    """Calls `fetch(layer)` one layer ahead, in a thread, and copies its tensors to `device`.

    A thread, since copying from pageable memory or files blocks the caller. On an accelerator the copies use pinned
    memory and a stream of their own.
    """

    def __init__(self, fetch: Callable[[int], list[Tensor]], num_layers: int, device: torch.device) -> None:
        self.fetch, self.num_layers, self.device = fetch, num_layers, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1)
        self._waiting: dict[int, Future[list[Tensor]]] = {}

    def take(self, layer: int) -> list[Tensor]:
        """The tensors of `layer`; the next layer's are fetched from now on. Raises what `fetch` has raised."""
        future = self._waiting.pop(layer, None)
        tensors = self._copies(layer) if future is None else future.result()
        if layer + 1 < self.num_layers:
            self._waiting[layer + 1] = self._worker.submit(self._copies, layer + 1)
        else:
            self._worker.shutdown(wait=False)
        if self._stream is not None:
            for tensor in tensors:
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return tensors

    def _copies(self, layer: int) -> list[Tensor]:
        on: AbstractContextManager[object] = torch.cuda.stream(self._stream) if self._stream else nullcontext()
        with on:
            copies = [self._copy(tensor) for tensor in self.fetch(layer)]
            if self._stream is not None:
                self._stream.synchronize()
        return copies

    def _copy(self, tensor: Tensor) -> Tensor:
        if tensor.device == self.device:
            return tensor
        return (tensor.pin_memory() if self._stream else tensor).to(self.device, non_blocking=self._stream is not None)
