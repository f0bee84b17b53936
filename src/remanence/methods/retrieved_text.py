"""The baseline that everybody uses (RAG): the same references, put in front of the prompt as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from remanence.lm.lm import LM
from remanence.methods.base import MemorySource, Method, Prompt, Reading, text_layout
from remanence.types import Hit


@dataclass(frozen=True)
class RetrievedTextConfig:
    """As many references as Memory³ reads, retrieved with the question or the prompt's last `query_tokens` tokens."""

    num_references: int = 5
    query_tokens: int = 64
    prefix_text: str = "Reference:"


class RetrievedText(Method):
    """`<s>Reference:`, then each reference on a line of its own, then the prompt; retrieved once (§7.4)."""

    name: ClassVar[str] = "retrieved_text"
    presets: ClassVar = {"default": lambda lm: RetrievedTextConfig()}
    writes_tensors: ClassVar[bool] = False
    config: RetrievedTextConfig

    def read(self, lm: LM, memory_source: MemorySource, prompts: Sequence[Prompt]) -> Reading:
        hits = [self._hits(lm, memory_source, prompt) for prompt in prompts]
        ids = [
            text_layout(lm, [hit.chunk.text for hit in row], prompt.ids, self.config.prefix_text)
            for row, prompt in zip(hits, prompts, strict=True)
        ]
        return Reading(tuple(ids), None, None, tuple(((0, row),) for row in hits))

    def _hits(self, lm: LM, memory_source: MemorySource, prompt: Prompt) -> tuple[Hit, ...]:
        short = len(prompt.ids) <= self.config.query_tokens + len(lm.bos)
        words = lm.decode(prompt.ids[-self.config.query_tokens :])
        query = (prompt.question or words) if short else words
        return tuple(memory_source.hits(query, self.config.num_references))
