"""The parts that M+ trains beside its two adapters: first vectors, a mark, projectors, and the first pool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from remanence.errors import InputError
from remanence.lm.lm import LM
from remanence.lm.lora import fill
from remanence.methods.mplus.longterm import LongTerm
from remanence.methods.mplus.retriever import projectors


class MPlusModules(nn.Module):
    """Trained parameters and the first pool of M+ for one model.

    `bos_LC`: the vector in front of every prefix, one per layer. `mark_C` is added to the tokens that become rows.
    `query`, `key`: the projectors of the reader's retriever, one per layer; `encoder_query`: the writer's. `pool_LNC`:
    the rows of a new pool. `long`: its long-term memory in published checkpoints (`row_LMC`, `key_LME`, `age_LM`,
    `frequency_LM`), else empty.
    """

    pool_LNC: Tensor

    def __init__(self, num_layers: int, width: int, key_width: int, pool_rows: int) -> None:
        super().__init__()
        self.bos_LC = nn.Parameter(torch.zeros(num_layers, width))
        self.mark_C = nn.Parameter(torch.zeros(width))
        self.query = projectors(num_layers, width, key_width)
        self.key = projectors(num_layers, width, key_width)
        self.encoder_query = projectors(num_layers, width, key_width)
        self.register_buffer("pool_LNC", torch.randn(num_layers, pool_rows, width))
        self.long: dict[str, Tensor] = {}

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.bos_LC)

    def first_long(self, empty: LongTerm) -> LongTerm:
        """The long-term memory of a new pool, whose clock is 0."""
        if not self.long:
            return empty
        blocks = empty.blocks.append(self.long["row_LMC"], self.long["key_LME"], -self.long["age_LM"].long())
        merged = replace(empty, blocks=blocks, num_merged=blocks.num_rows)
        if empty.dies_LM is None:
            return merged
        dies_LM = self.long["frequency_LM"].float()
        return replace(merged, dies_LM=dies_LM, kept_LM=torch.ones_like(dies_LM, dtype=torch.bool))

    def load_retriever(self, file: Path) -> None:
        """Replaces the reader's projectors by those of a safetensors file. InputError for a file without them."""
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"no retriever can be read from {str(file)!r}: {error}", "train one, or name another"
            ) from error
        wanted = {name: t for name, t in self.state_dict().items() if name.startswith(("query.", "key."))}
        fill(wanted, tensors, f"the retriever {file.name}")

    @staticmethod
    def beside(lm: LM, key_width: int, pool_rows: int) -> MPlusModules:
        """The modules in a model folder (`latent.safetensors`); else new ones to train, as in the authors' code.

        New ones have random projectors and a random pool; the first vector is the embedding of the model's BOS token.
        Raises InputError where shapes differ.
        """
        made = MPlusModules(lm.dims.num_layers, lm.dims.width, key_width, pool_rows)
        if lm.latent is not None:
            long = {name.removeprefix("long."): t for name, t in lm.latent.items() if name.startswith("long.")}
            rest = {name: tensor for name, tensor in lm.latent.items() if not name.startswith("long.")}
            wanted = made.state_dict()
            if not any(name.startswith("query.") for name in rest):  # MemoryLLM has no retriever
                wanted = {name: tensor for name, tensor in wanted.items() if "." not in name}
            fill(wanted, rest, f"the latent memory of {lm.name}")
            made.long = long
        elif lm.bos:
            with torch.no_grad():
                embedding_VC = lm.model.get_input_embeddings().get_parameter("weight")
                made.bos_LC.copy_(embedding_VC[lm.bos[0]].float().expand(lm.dims.num_layers, -1))
        return made.to(lm.device, lm.dtype).eval()
