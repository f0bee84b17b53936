"""The generation loop: a prompt's prefill with memory, then token by token, memory read again as the prefix says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from remanence.errors import InputError
from remanence.lm.cache import roomy_cache
from remanence.lm.cached_prefix import CachedPrefix
from remanence.lm.lm import LM
from remanence.types import Prefix

Refresh = Callable[[list[list[int]]], Prefix | None]
"""Given every row's tokens so far (prompt and answer; none where it has ended), the prefix for what follows."""


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy; `top_p` keeps the likeliest tokens that together reach this probability.

    Every row draws from its own generator seeded with `seed`, so a row of a batch equals the row alone.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise InputError(f"temperature {self.temperature} is below 0", "use 0 for greedy decoding, or 0.1 to 2")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} is not in (0, 1]", "use 1 to keep every token")


@dataclass
class Row:
    """One answer as it grows: `text` is all that is final, without a stop string and without half characters.

    The first `num_tokens` of `ids` are the answer's; the rest keeps a finished row in step with its batch.
    """

    prompt: tuple[int, ...]
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    text: str = ""
    finish: str | None = None

    @property
    def all_ids(self) -> list[int]:
        return [*self.prompt, *self.ids]


@torch.inference_mode()
def decode(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    prefix: Prefix | None = None,
    *,
    decoding_prefix: Prefix | None = None,
    refresh: Refresh | None = None,
    max_tokens: int = 64,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    role: str | None = None,
) -> Iterator[list[Row]]:
    """Yields the rows after each new token; the same objects each time, so `rows[i].text` only grows.

    `prefix` is what the prompts see, `decoding_prefix` (None: the same) what the answers see until `refresh`
    is called, every `prefix.refresh_tokens` generated tokens. Raises ContextTooLong before anything is computed.
    """
    sampling = sampling or Sampling()
    offset = 0 if prefix is None else prefix.offset_tokens
    lm.check_length(offset + max(map(len, prompts)) + max_tokens)
    rows = [Row(tuple(p), torch.Generator(lm.device).manual_seed(sampling.seed)) for p in prompts]
    ids_BT, mask_BS = pad_left(prompts, lm.device)
    cache = roomy_cache(lm.model)
    positions_BT = offset + (mask_BS.cumsum(-1) - 1).clamp(min=0)
    padded = not bool(mask_BS.all())
    memory, resident = prefix, CachedPrefix(lm.model, cache, padded)
    for step in range(max_tokens):
        logits_BTV = lm.forward(ids_BT, memory, positions_BT, mask_BS if padded else None, cache, True, role)
        for row, logits_V in zip(rows, logits_BTV[:, -1].float(), strict=True):
            _push(lm, row, _sample(logits_V, sampling, row.generator), stop, last=step + 1 == max_tokens)
        yield rows
        if all(row.finish for row in rows):
            return
        if step == 0:
            memory = resident.place(decoding_prefix if decoding_prefix is not None else prefix)
        every = None if prefix is None else prefix.refresh_tokens
        if refresh is not None and every and (step + 1) % every == 0:
            memory = resident.place(refresh([[] if row.finish else row.all_ids for row in rows]))
        ids_BT = torch.tensor([[row.ids[-1]] for row in rows], device=lm.device)
        mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(rows), 1)], dim=1)
        positions_BT = positions_BT[:, -1:] + 1


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """ids_BT and mask_BT (1 = text); rows end together. Raises InputError for an empty prompt."""
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise InputError("an empty prompt has no token to go on from", "ask a question of at least one word")
    T = max(map(len, prompts))
    ids = [[0] * (T - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (T - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _sample(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    prob_V = (logits_V / sampling.temperature).softmax(-1)
    sorted_V, order_V = prob_V.sort(descending=True)
    sorted_V = sorted_V.masked_fill(sorted_V.cumsum(-1) - sorted_V >= sampling.top_p, 0.0)
    return int(order_V[torch.multinomial(sorted_V, 1, generator=generator)])


def _push(lm: LM, row: Row, token: int, stop: Sequence[str], *, last: bool) -> None:
    """Adds a token to a row; a finished row is fed its last token again, which no other row sees."""
    if row.finish is not None:
        row.ids.append(row.ids[-1])
        return
    row.ids.append(token)
    row.num_tokens += 1
    ended = token in lm.eos
    text = lm.decode(row.ids[:-1] if ended else row.ids)
    cut = min((at for s in stop if s and (at := text.find(s)) >= 0), default=None)
    if cut is not None or ended:
        row.text, row.finish = text[:cut], "stop"
    elif last:
        row.text, row.finish = text, "length"
    else:
        row.text = text[: len(text) - _held_back(text, stop)]


def _held_back(text: str, stop: Sequence[str]) -> int:
    """Characters at the end that are not final yet: half of a character, or the beginning of a stop string."""
    if text.endswith("�"):
        return len(text) - len(text.rstrip("�"))
    return max((n for s in stop for n in range(len(s) - 1, 0, -1) if text.endswith(s[:n])), default=0)
