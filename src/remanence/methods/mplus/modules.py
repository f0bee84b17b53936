"""What M+ trains beside the two adapters: first vectors, a mark, three projectors per layer, and a first pool."""

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
    """`bos_LC`: the vector in front of every prefix, one per layer. `mark_C` is added to the tokens that become rows.

    `query`, `key`: the reader's retriever; `encoder_query`: the writer's. `pool_LNC`: what a new pool holds; `long`
    what its long-term memory does (`row_LMC`, `key_LME`, `age_LM`, `frequency_LM`, for published checkpoints).
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
        """Other projectors for queries and keys, of the same shapes. InputError where there are none."""
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"no retriever can be read from {str(file)!r}: {error}", "train one, or name another"
            ) from error
        wanted = {name: t for name, t in self.state_dict().items() if name.startswith(("query.", "key."))}
        fill(wanted, found, f"the retriever {file.name}")

    @staticmethod
    def beside(lm: LM, key_width: int, pool_rows: int) -> MPlusModules:
        """What a model folder's `latent.safetensors` holds; else a start: random projectors and pool (authors' code).

        The first vector starts as the embedding of the model's own BOS token. Raises InputError where shapes differ.
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
