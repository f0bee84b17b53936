"""The baseline without retrieval: everything in the bank as text in front of the prompt, as far as it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from remanence.lm.lm import LM
from remanence.methods.base import Method, Prompt, Reading, Recaller, text_layout


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

    def read(self, lm: LM, recall: Recaller, prompts: Sequence[Prompt]) -> Reading:
        ids, groups = [], []
        for prompt in prompts:
            room = lm.dims.max_positions - len(prompt.ids) - self.config.reserved_tokens
            hits = recall.texts(room)
            while (
                hits
                and len(row := self._layout(lm, hits, prompt)) > lm.dims.max_positions - self.config.reserved_tokens
            ):
                hits = hits[:-1]
            ids.append(row if hits else prompt.ids)
            groups.append(((0, tuple(hits)),))
        return Reading(tuple(ids), None, None, tuple(groups))

    def _layout(self, lm: LM, hits: Sequence, prompt: Prompt) -> tuple[int, ...]:
        return text_layout(lm, [hit.chunk.text for hit in hits], prompt.ids, self.config.prefix_text)
