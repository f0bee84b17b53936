"""A text's search vector from the model's own hidden states, through a small head trained with the model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from remanence.errors import InputError
from remanence.lm import attention

WEIGHTS, CONFIG = "embedder.safetensors", "embedder.json"


@dataclass(frozen=True)
class SearchHead:
    """The trained part: the layer whose input is read, and the linear map from it to search vectors."""

    layer: int
    weight_EC: Tensor

    @classmethod
    def beside(cls, folder: Path) -> SearchHead | None:
        """The head in a checkpoint's folder, or None."""
        if not (folder / WEIGHTS).is_file():
            return None
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            return cls(int(config["layer"]), load_file(folder / WEIGHTS)["weight"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"the search head in {str(folder)!r} cannot be read ({reason})", "load the model again"
            ) from error


class Encoder(Protocol):
    """What an embedder needs of an `LM`."""

    name: str
    model: Any

    @property
    def device(self) -> torch.device: ...
    @cached_property
    def fingerprint(self) -> str: ...
    def encode(self, text: str) -> list[int]: ...


class ModelEmbedder:
    """Mean over a text's tokens of what attention at `layer` is given, times `weight_EC`, scaled to length 1."""

    def __init__(self, lm: Encoder, head: SearchHead) -> None:
        self.lm, self.layer = lm, head.layer
        self.weight_EC = head.weight_EC.to(lm.device, torch.float32)

    @property
    def name(self) -> str:
        return f"{self.lm.name}-hidden{self.layer}-{self.lm.fingerprint[:16]}"

    @property
    def dim(self) -> int:
        return len(self.weight_EC)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, E), rows of length 1; texts are cut at 256 tokens."""
        rows = [self.lm.encode(text)[:256] or [0] for text in texts]
        vectors = [self._embed(rows[i : i + 32]) for i in range(0, len(rows), 32)]
        return torch.cat(vectors).cpu().numpy() if vectors else np.zeros((0, self.dim), np.float32)

    def _embed(self, rows: list[list[int]]) -> Tensor:
        length = max(map(len, rows))
        ids_BT = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.lm.device)
        num_tokens_B = torch.tensor([len(row) for row in rows], device=self.lm.device)
        return F.normalize(mean_hidden(self.lm.model, ids_BT, num_tokens_B, self.layer) @ self.weight_EC.T, dim=-1)


def mean_hidden(model: torch.nn.Module, ids_BT: Tensor, num_tokens_B: Tensor, layer: int) -> Tensor:
    """Mean (B, C), float32, over each row's first `num_tokens_B` tokens of the input of attention at `layer`."""
    watch = attention.AttentionCapture(frozenset([layer]), stop=True)
    with contextlib.suppress(attention.StopForward):
        model(ids_BT, use_cache=False, watch=watch)
    hidden_BTC = watch.hidden[layer].float()
    real_BT1 = (torch.arange(ids_BT.shape[1], device=ids_BT.device) < num_tokens_B[:, None])[..., None]
    return (hidden_BTC * real_BT1).sum(1) / num_tokens_B[:, None]
