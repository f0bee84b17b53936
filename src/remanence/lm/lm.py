"""LM: a Hugging Face causal language model that can be given memory, with its tokenizer and fingerprint."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from remanence.errors import ContextTooLong
from remanence.lm import attention, proof, rope_limit
from remanence.lm.cache import cache_keyword
from remanence.lm.capture import capture, text_config
from remanence.lm.embedder import ModelEmbedder, SearchHead
from remanence.lm.fingerprint import fingerprint
from remanence.types import KV, Prefix


@dataclass(frozen=True)
class Dims:
    """Sizes of a model; `max_positions` is the largest number of positions at which memory is exact.

    It is what the model was made for, or where its rotary embedding changes with the length (`lm/rope_limit.py`).
    """

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int


class LM:
    """A model that passed `prove`, its tokenizer, and what belongs to them. The model never changes afterwards.

    `settings`: method name -> the fields of its config that the checkpoint was made for (`remanence.json`).

    `search_head`: makes search vectors; None: the model has none. `latent`: tensors of M+ that were trained with it.

    `reads_as`, `writes_as`: the adapters (`lm/lora.py`) that text is read with and references are written with; None:
    the base.

    `fingerprint` None: computed from the model and the tokenizer, once. A model with an adapter that only reads is
    given the fingerprint of its base: its adapters read what the base has written. After training, make a new LM.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        *,
        settings: Mapping[str, dict[str, Any]] | None = None,
        search_head: SearchHead | None = None,
        latent: dict[str, Tensor] | None = None,
        reads_as: str | None = None,
        writes_as: str | None = None,
        fingerprint: str | None = None,
    ):
        self.model = attention.prepare(model)
        self.tokenizer: Any = tokenizer
        self.name = name
        self.proof = proof.prove(self.model)
        self.settings = dict(settings or {})
        self.latent = latent
        self.reads_as = reads_as
        self.writes_as = writes_as
        self._fingerprint = fingerprint
        self.embedder = ModelEmbedder(self, search_head) if search_head else None
        self._constants: dict[tuple[int, ...], tuple[int, dict[int, KV]]] = {}

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @cached_property
    def dims(self) -> Dims:
        config = text_config(self.model)
        heads = config.num_attention_heads
        return Dims(
            num_layers=config.num_hidden_layers,
            width=config.hidden_size,
            num_heads=heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab_size=config.vocab_size,
            max_positions=min(config.max_position_embeddings, rope_limit.rope_limit(self.model) or sys.maxsize),
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over weights, config, tokenizer and dtype. A stored memory is valid for one of them."""
        return self._fingerprint or fingerprint(self.model, self.tokenizer)

    @cached_property
    def bos(self) -> list[int]:
        """The token that begins a text, as a list; empty for models that have none."""
        return [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]

    @cached_property
    def eos(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = [ids] if isinstance(ids, int) else list(ids or [])
        return frozenset([*ids, *([self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else [])])

    @cached_property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer, as the model's generation config says."""
        stop = getattr(self.model.generation_config, "stop_strings", None) or ()
        return (stop,) if isinstance(stop, str) else tuple(stop)

    def encode(self, text: str) -> list[int]:
        """Tokens of `text` without special tokens (none is added, none is read out of the text)."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def count_tokens(self, text: str) -> int:
        return len(self.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def render(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation up to where the assistant speaks next, beginning with BOS exactly once.

        A model without a chat template is given the contents, one a line.
        """
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = self.encode("\n".join(message["content"] for message in messages))
        while self.bos and ids[:1] == self.bos:
            ids = ids[1:]
        return [*self.bos, *ids]

    def constant(self, ids: Sequence[int]) -> dict[int, KV]:
        """Keys and values, by layer, of a text in front of every prompt, at positions 0, 1, 2 ...

        Without gradients they are computed once, and again after the weights have changed.
        """
        if torch.is_grad_enabled():
            return self._keys_and_values(ids)
        version = sum(0 if p.is_inference() else p._version for p in self.model.parameters())
        computed_at, keys_and_values = self._constants.get(tuple(ids), (None, {}))
        if computed_at != version:
            keys_and_values = self._keys_and_values(ids)
            self._constants[tuple(ids)] = (version, keys_and_values)
        return keys_and_values

    def drop_constants(self) -> None:
        """Call it after weights changed in a way that torch does not count, as fused optimizers and FSDP do."""
        self._constants.clear()

    def _keys_and_values(self, ids: Sequence[int]) -> dict[int, KV]:
        ids_BT = torch.tensor([ids], device=self.device)
        layers = frozenset(range(self.dims.num_layers))
        records = capture(self.model, ids_BT, layers, role=self.reads_as)
        return {layer: KV(record.key_BGSD, record.value_BGSD) for layer, record in records.items()}

    def check_length(self, num_positions: int) -> None:
        """Raises ContextTooLong for more positions than `dims.max_positions`."""
        if num_positions > self.dims.max_positions:
            reason = rope_limit.reason_of(self.model)
            raise ContextTooLong(
                f"{num_positions} tokens (memory's positions included) do not fit {self.name}, "
                f"which has {self.dims.max_positions} positions" + (f": {reason}" if reason else ""),
                "shorten the prompt or max_tokens, or write the text into the bank and ask a short question",
            )

    def forward(
        self,
        ids_BT: Tensor,
        memory: Prefix | None = None,
        positions_BT: Tensor | None = None,
        mask_BS: Tensor | None = None,
        cache: Any = None,
        last_only: bool = False,
        role: str | None = None,
    ) -> Tensor:
        """Logits (B, T, V), or (B, 1, V) with `last_only`.

        `positions_BT` None: `memory.offset_tokens` (or 0) + 0, 1, 2 ... after what the cache holds.
        `mask_BS` (1 = text, 0 = padding) covers the cached and the new tokens; memory is always seen.
        `role`: the adapter that runs, for models that have roles (`lm/lora.py`); None: `reads_as`.
        """
        if positions_BT is None:
            start = (0 if memory is None else memory.offset_tokens) + (0 if cache is None else cache.get_seq_length())
            positions_BT = torch.arange(start, start + ids_BT.shape[1], device=ids_BT.device)[None]
        extra: dict[str, Any] = {} if memory is None else {"memory": memory}
        role = role or self.reads_as
        extra |= {} if role is None else {"role": role}
        extra |= {} if cache is None else {cache_keyword(self.model): cache}
        return self.model(
            ids_BT,
            attention_mask=mask_BS,
            position_ids=positions_BT,
            use_cache=cache is not None,
            logits_to_keep=1 if last_only else 0,
            **extra,
        ).logits
