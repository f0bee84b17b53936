"""The method Memory³ (arXiv 2407.01178): references become sparse keys and values that self-attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from remanence.errors import InputError
from remanence.lm.attention import AttentionRecord, attention_mass
from remanence.lm.capture import capture
from remanence.lm.lm import LM
from remanence.lm.rotate import move_keys
from remanence.methods.base import MemorySource, Method, Prompt, Reading
from remanence.methods.memory3.layout import (
    Group,
    num_positions,
    num_real,
    num_slots,
    shared_columns,
    stacked_memories,
    visible_columns,
)
from remanence.methods.memory3.selection import attention_received, select, take
from remanence.types import KV, ExplicitMemory, Hit, LayerPrefix


@dataclass(frozen=True)
class Memory3Config:
    """The paper's choices (§3); `memory_layers` is the only one without a default.

    `kept_tokens` None keeps every token. `positions`: "parallel" puts all references in one interval of
    `reference_tokens` positions (§3.3), "consecutive" one after the other, keys rotated to their place.
    `selection`: the softmax of the formula, or "exp", the denominator-free weights of the authors' code.
    `refresh_tokens` None: memory is read once for each prompt.
    """

    memory_layers: tuple[int, ...]
    kept_tokens: int | None = 8
    reference_tokens: int = 128
    num_memories: int = 5
    chunk_tokens: int = 64
    refresh_tokens: int | None = 64
    selection: Literal["softmax", "exp"] = "softmax"
    positions: Literal["parallel", "consecutive"] = "parallel"
    prefix_text: str = "Reference:"

    def __post_init__(self) -> None:
        if self.positions == "consecutive" and self.refresh_tokens is not None:
            raise InputError(
                f"consecutive positions cannot be kept when memory is read again every {self.refresh_tokens} tokens",
                "use refresh_tokens=None, or positions='parallel'",
            )


def paper(lm: LM) -> Memory3Config:
    """§3: the first half of the layers, 8 of 128 tokens per KV head, parallel positions."""
    return Memory3Config(memory_layers=tuple(range(max(1, lm.dims.num_layers // 2))))


def dense(lm: LM) -> Memory3Config:
    """For models that were never trained for memory: all layers, all tokens, consecutive positions."""
    layers = tuple(range(lm.dims.num_layers))
    return Memory3Config(layers, kept_tokens=None, refresh_tokens=None, positions="consecutive")


@dataclass(frozen=True)
class Written:
    """A batch of references at the memory layers L: the keys and values that are kept, and how they were selected.

    `index_BLGN` (int32): positions in the reference, -1 where a head keeps fewer. `weight_BLGT` (float32): attention
    that each token received, -inf at padding; None where every token is kept. `seen`: the attention of each layer.
    """

    key_BLGND: Tensor
    value_BLGND: Tensor
    index_BLGN: Tensor
    weight_BLGT: Tensor | None
    seen: list[AttentionRecord]


class Memory3(Method):
    """Memory³ (https://arxiv.org/abs/2407.01178, §3); docs/memory3.md lists what the paper leaves open."""

    name: ClassVar[str] = "memory3"
    presets: ClassVar = {"paper": paper, "dense": dense}
    config: Memory3Config

    # -- writing ---------------------------------------------------------------------------------------------

    def prefix_ids(self, lm: LM) -> list[int]:
        """Tokens of `<s>Reference:`, which stand in front of every reference and of the context (§3.2)."""
        return [*lm.bos, *lm.encode(self.config.prefix_text)]

    def reference_tokens(self) -> int:
        return self.config.reference_tokens

    def write(self, lm: LM, references: Sequence[Sequence[int]]) -> list[ExplicitMemory]:
        """One memory per reference of 1 to `reference_tokens` tokens (§3.2, §3.3); gradients flow through K and V."""
        self._check(references)
        if not references:
            return []
        return self.split(self.write_together(lm, references), [len(reference) for reference in references])

    def split(self, written: Written, lengths: Sequence[int]) -> list[ExplicitMemory]:
        """The memories of `written` one by one, `lengths` the tokens of each reference."""
        slots = written.index_BLGN.shape[-1]
        sizes = lengths if self.config.kept_tokens is None else [slots] * len(lengths)
        rows = zip(
            *(part.unbind() for part in (written.key_BLGND, written.value_BLGND, written.index_BLGN)), strict=True
        )
        return [
            ExplicitMemory(self.config.memory_layers, *(part[:, :, :n] for part in row))
            for row, n in zip(rows, sizes, strict=True)
        ]

    def write_together(self, lm: LM, references: Sequence[Sequence[int]], *, gradient: bool = False) -> Written:
        """`prefix_ids + reference + padding` of all references in one pass, up to the last memory layer.

        No mask is needed: the mask is causal and the padding comes last. `gradient`: the attention that tokens
        receive has one too (choosing by it has none), for losses on the choice.
        """
        lead, longest = self.prefix_ids(lm), max(map(len, references))
        pad = [[*lead, *reference] + [0] * (longest - len(reference)) for reference in references]
        num_tokens_B = torch.tensor([len(reference) for reference in references], device=lm.device)
        real_BT = torch.arange(longest, device=lm.device) < num_tokens_B[:, None]
        layers, weighed = self.config.memory_layers, gradient or self.config.kept_tokens is not None
        ids_BT = torch.tensor(pad, device=lm.device)
        records = capture(lm.model, ids_BT, frozenset(layers), pre_rope=weighed, gradient=gradient, role=lm.writes_as)
        seen = [records[layer] for layer in layers]
        weights = [self._weigh(shown, len(lead), real_BT) for shown in seen] if weighed else []
        every = real_BT[:, None].expand(-1, seen[0].key_BGSD.shape[1], -1).float()
        keys, values, indices = [], [], []
        for i, shown in enumerate(seen):
            weight_BGT = every if self.config.kept_tokens is None else weights[i].detach()
            index_BGN = select(weight_BGT, real_BT, self.config.kept_tokens)
            keys.append(take(shown.key_BGSD[:, :, len(lead) :], index_BGN))
            values.append(take(shown.value_BGSD[:, :, len(lead) :], index_BGN))
            indices.append(index_BGN.to(torch.int32))
        weight_BLGT = torch.stack(weights, 1) if weighed else None
        return Written(torch.stack(keys, 1), torch.stack(values, 1), torch.stack(indices, 1), weight_BLGT, seen)

    def _weigh(self, shown: AttentionRecord, num_lead: int, real_BT: Tensor) -> Tensor:
        assert shown.pre_rope_query_BHTD is not None
        assert shown.pre_rope_key_BGTD is not None
        query_BHTD, key_BGTD = shown.pre_rope_query_BHTD[:, :, num_lead:], shown.pre_rope_key_BGTD[:, :, num_lead:]
        return attention_received(query_BHTD, key_BGTD, real_BT, shown.scaling, self.config.selection)

    def _check(self, references: Sequence[Sequence[int]]) -> None:
        limit = self.config.reference_tokens
        for reference in references:
            if not 1 <= len(reference) <= limit:
                raise InputError(
                    f"a reference of {len(reference)} tokens cannot be written: a memory holds 1 to {limit}",
                    "split the text into chunks (remanence.text.chunks.split), or drop empty ones",
                )

    # -- reading ---------------------------------------------------------------------------------------------

    def lead(self, lm: LM) -> dict[int, KV]:
        """Keys and values of `<s>Reference:` at every layer; the constant that text sees in all layers (§3.2)."""
        return lm.constant(self.prefix_ids(lm))

    def read(self, lm: LM, memory_source: MemorySource, prompts: Sequence[Prompt]) -> Reading:
        """Each 64-token chunk of a prompt gets the memories that it retrieves itself (§3.1); one masked pass."""
        groups, hits = [], []
        for prompt in prompts:
            retrieved = [
                (start, tuple(memory_source.hits(query, self.config.num_memories)))
                for start, query in self._chunks(lm, prompt)
            ]
            hits.append(tuple(retrieved))
            groups.append([Group(start, self._load(lm, memory_source, chunk)) for start, chunk in retrieved])
        lead = self.lead(lm)
        prefix = self.prefix(lm, groups, [len(prompt.ids) for prompt in prompts], lead)
        return Reading(
            prompts=tuple(prompt.ids for prompt in prompts),
            prefix=prefix,
            decoding=self.prefix(lm, [[Group(0, row[-1].memories)] for row in groups], [1] * len(groups), lead),
            groups=tuple(hits),
            memory_tokens=tuple(max(num_slots(group) for group in row) for row in groups),
        )

    def refresh(
        self, lm: LM, memory_source: MemorySource, reading: Reading, sequences: Sequence[Sequence[int]]
    ) -> Reading:
        """New memories for the next 64 generated tokens, retrieved with the last 64 (§3.1)."""
        if self.config.refresh_tokens is None:
            return reading
        size, limit = self.config.chunk_tokens, self.config.num_memories
        hits = [tuple(memory_source.hits(lm.decode(ids[-size:]), limit)) if ids else () for ids in sequences]
        groups = [[Group(0, self._load(lm, memory_source, new))] for new in hits]
        return replace(
            reading,
            decoding=self.prefix(lm, groups, [1] * len(sequences)),
            groups=tuple(
                (*old, (len(ids) - 1, new)) if ids else old
                for old, ids, new in zip(reading.groups, sequences, hits, strict=True)
            ),
        )

    @torch.no_grad()
    def attention_shares(
        self, lm: LM, memory_source: MemorySource, reading: Reading, sequences: Sequence[Sequence[int]]
    ) -> list[dict[str, float]]:
        """Attention to each memory: mean over memory layers, heads, and the tokens that predict the answer."""
        return [self._shares_of(lm, memory_source, reading, b, ids) for b, ids in enumerate(sequences)]

    def _shares_of(
        self, lm: LM, memory_source: MemorySource, reading: Reading, b: int, ids: Sequence[int]
    ) -> dict[str, float]:
        groups = [Group(start, self._load(lm, memory_source, hits)) for start, hits in reading.groups[b]]
        owners = [hit.chunk.id for _, hits in reading.groups[b] for hit in hits]
        first = len(reading.prompts[b]) - 1  # the prompt's last token predicts the answer's first
        if not owners or len(ids) - 1 <= first:
            return {}
        prefix = self.prefix(lm, [groups], [len(ids) - 1])
        ids_BT = torch.tensor([ids[:-1]], device=lm.device)
        positions_BT = prefix.offset_tokens + torch.arange(len(ids) - 1, device=lm.device)[None]
        layers = frozenset(self.config.memory_layers)
        records = capture(lm.model, ids_BT, layers, positions_BT=positions_BT, memory=prefix, role=lm.reads_as)
        mass_M = torch.stack([attention_mass(record, first) for record in records.values()]).mean(0)
        shares: dict[str, float] = dict.fromkeys(owners, 0.0)
        column = len(self.prefix_ids(lm))
        for owner, memory in zip(owners, (m for group in groups for m in group.memories), strict=True):
            width = memory.index_LGN.shape[-1]
            shares[owner] += float(mass_M[column : column + width].sum())
            column += width
        return shares

    def _load(self, lm: LM, memory_source: MemorySource, hits: Sequence[Hit]) -> tuple[ExplicitMemory, ...]:
        """In the model's own dtype, so that keys that are moved are rounded once."""
        return tuple(memory.to(lm.device, lm.dtype) for memory in memory_source.memories(hits))

    def _chunks(self, lm: LM, prompt: Prompt) -> list[tuple[int, str]]:
        """(first token, search words) of each chunk; a short prompt is one chunk and searches with its question.

        A last chunk that is not full searches with the last `chunk_tokens` tokens, so that it has enough words.
        """
        size, lead, ids = self.config.chunk_tokens, len(lm.bos), prompt.ids
        if self.config.refresh_tokens is None or len(ids) <= size + lead:
            return [(0, prompt.question or lm.decode(ids))]
        starts = range(lead, len(ids), size)
        windows = [ids[max(lead, min(start, len(ids) - size)) : start + size] for start in starts]
        return [
            (0 if i == 0 else start, lm.decode(window))
            for i, (start, window) in enumerate(zip(starts, windows, strict=True))
        ]

    def offset_tokens(self, lm: LM, groups: Sequence[Sequence[Group]]) -> int:
        """Where the text's positions start: after the prefix and the interval that the references share (§3.3)."""
        b = len(self.prefix_ids(lm))
        if self.config.positions == "parallel":
            return b + self.config.reference_tokens
        return b + max((num_positions(row) for row in groups), default=0)

    def prefix(
        self, lm: LM, groups: Sequence[Sequence[Group]], lengths: Sequence[int], lead: dict[int, KV] | None = None
    ) -> LayerPrefix:
        """Keys and values in front of a batch whose rows have `lengths` tokens and end together (left padding).

        Row r's tokens from `groups[r][i].start` up to the next start see the memories of group i, and all see
        `<s>Reference:`. `lead`: its keys and values, where they are at hand already.
        """
        lead = self.lead(lm) if lead is None else lead
        offset = self.offset_tokens(lm, groups)
        rows = [[memory for group in row for memory in group.memories] for row in groups]
        if self.config.positions == "consecutive":
            rows = [self._place(lm, row, offset) for row in groups]
            lead = self._place_lead(lm, groups, lead, offset)
        visible_BTM = visible_columns(groups, rows, lengths, len(self.prefix_ids(lm)), lm.device)
        return self._in_front(lm, rows, lead, visible_BTM, offset)

    def shared_prefix(self, lm: LM, rows: Sequence[Sequence[ExplicitMemory]], num_tokens: int) -> LayerPrefix:
        """For rows of `num_tokens` tokens in equal chunks, one memory each: a chunk reads its own and those before it.

        As many as are read at inference (§3.6: five), each standing there once. InputError where chunks are not equal.
        """
        if self.config.positions != "parallel" or not rows or num_tokens % len(rows[0]) or len(set(map(len, rows))) > 1:
            raise InputError(
                f"{num_tokens} tokens do not fall into chunks with one memory each",
                'give every row one memory for each equal chunk, with positions="parallel"',
            )
        visible_BTM = shared_columns(rows, num_tokens, len(self.prefix_ids(lm)), self.config.num_memories)
        offset = len(self.prefix_ids(lm)) + self.config.reference_tokens
        return self._in_front(lm, rows, self.lead(lm), visible_BTM.to(lm.device), offset)

    def _in_front(
        self,
        lm: LM,
        rows: Sequence[Sequence[ExplicitMemory]],
        lead: dict[int, KV],
        visible_BTM: Tensor | None,
        offset: int,
    ) -> LayerPrefix:
        memory = stacked_memories(rows) if any(rows) else None
        kvs = [self._layer(layer, lead[layer], memory, visible_BTM) for layer in range(lm.dims.num_layers)]
        return LayerPrefix(tuple(kvs), offset, self.config.refresh_tokens)

    def _layer(self, layer: int, lead: KV, memory: tuple[Tensor, Tensor] | None, visible_BTM: Tensor | None) -> KV:
        if memory is None or layer not in self.config.memory_layers:
            return lead
        at = self.config.memory_layers.index(layer)
        key_BGMD, value_BGMD = (t[:, at] for t in memory)
        B = len(key_BGMD)
        return KV(
            torch.cat([lead.key_BGMD.expand(B, -1, -1, -1), key_BGMD.to(lead.key_BGMD)], dim=2),
            torch.cat([lead.value_BGMD.expand(B, -1, -1, -1), value_BGMD.to(lead.value_BGMD)], dim=2),
            visible_BTM,
        )

    def _place(self, lm: LM, row: Sequence[Group], offset: int) -> list[ExplicitMemory]:
        """Consecutive positions: each memory's keys moved to where its text would stand, the last one at the end."""
        placed = []
        for group in row:
            start = offset - len(self.prefix_ids(lm)) - sum(num_real(m) for m in group.memories)
            for memory in group.memories:
                placed.append(replace(memory, key_LGND=move_keys(lm.model, memory.key_LGND, memory.layers, start)))
                start += num_real(memory)
        return placed

    def _place_lead(self, lm: LM, groups: Sequence[Sequence[Group]], lead: dict[int, KV], offset: int) -> dict[int, KV]:
        """The prefix right before each row's memories, so that a row of a batch is the row alone, moved."""
        starts = [offset - len(self.prefix_ids(lm)) - num_positions(row) for row in groups]
        if not any(starts):
            return lead
        key_LGND = torch.cat([kv.key_BGMD for kv in lead.values()])
        key_BLGND = torch.stack([move_keys(lm.model, key_LGND, tuple(lead), start) for start in starts])
        return {layer: KV(key_BLGND[:, i], kv.value_BGMD) for i, (layer, kv) in enumerate(lead.items())}
