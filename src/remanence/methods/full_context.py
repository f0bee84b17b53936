"""The baseline without retrieval: everything in the bank as text in front of the prompt, as far as it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from remanence.lm.lm import LM
from remanence.methods.base import MemorySource, Method, Prompt, Reading, text_layout


@dataclass(frozen=True)
class FullContextConfig:
    """`reserved_tokens` of the model's positions are kept free for the answer."""

    reserved_tokens: int = 256
    prefix_text: str = "Reference:"


class FullContext(Method):
    """The oldest chunks first; what does not fit is left out."""

    name: ClassVar[str] = "full_context"
    presets: ClassVar = {"default": lambda lm: FullContextConfig()}
    writes_tensors: ClassVar[bool] = False
    config: FullContextConfig

    def read(self, lm: LM, memory_source: MemorySource, prompts: Sequence[Prompt]) -> Reading:
        limit = lm.dims.max_positions - self.config.reserved_tokens
        hits = memory_source.texts(limit)
        lengths = [len(lm.encode(f" {hit.chunk.text}\n")) for hit in hits]
        fixed = len(lm.bos) + len(lm.encode(self.config.prefix_text))
        rows = [
            [hit for hit, end in zip(hits, accumulate(lengths), strict=True) if fixed + end + len(prompt.ids) <= limit]
            for prompt in prompts
        ]
        ids = [
            text_layout(lm, [hit.chunk.text for hit in row], prompt.ids, self.config.prefix_text)
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        return Reading(tuple(ids), None, None, tuple(((0, tuple(row)),) for row in rows))
