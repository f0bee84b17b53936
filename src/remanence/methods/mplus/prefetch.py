"""What a layer reads from RAM or disk, on its way to the model's device while the layer before it computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class Ahead:
    """`take(layer)` gives what `fetch(layer)` gives, on `device`, and has the next layer's fetched meanwhile.

    By a thread, since rows in pageable memory or files block who copies them; on an accelerator through pinned memory
    and a stream of its own.
    """

    def __init__(self, fetch: Callable[[int], list[Tensor]], num_layers: int, device: torch.device) -> None:
        self.fetch, self.num_layers, self.device = fetch, num_layers, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1)
        self._waiting: dict[int, Future[list[Tensor]]] = {}

    def take(self, layer: int) -> list[Tensor]:
        under_way = self._waiting.pop(layer, None)
        found = self._copies(layer) if under_way is None else under_way.result()
        if layer + 1 < self.num_layers:
            self._waiting[layer + 1] = self._worker.submit(self._copies, layer + 1)
        else:
            self._worker.shutdown(wait=False)
        if self._stream is not None:
            for tensor in found:
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return found

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
