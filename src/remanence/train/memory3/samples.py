"""Greedy answers to a few held-out questions, for the log of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from remanence.lm.lm import LM
from remanence.methods.memory3.method import Group, Memory3, paper
from remanence.train.core.model import cast, logits_at
from remanence.train.examples.mixture import Encoder, Example, facts_example
from remanence.train.recipes.nano import NanoPhase

QUESTIONS, MOST_TOKENS = 3, 16
PASSAGES = NanoPhase(0, 1, 0, (3, 3), 2)

NextLogits = Callable[[list[int]], Tensor]
"""Token ids -> logits_V of the next token."""


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def sample_with_text(model: Any, encoder: Encoder, recipe: Any) -> dict[str, Any]:
    """Answers to questions after three passages as text, as in the warm-up."""
    model.eval()

    def reader(example: Example) -> tuple[list[int], NextLogits]:
        passages = [id for ids in encoder(*(f" {text}\n" for text in example.references)) for id in ids]
        return [*encoder.header, *passages, encoder.bos], lambda ids: next_logits(model, ids, recipe)

    record = sample_answers(recipe.seed, encoder, reader)
    model.train()
    return record


@torch.no_grad()
def sample_with_memories(lm: LM, encoder: Encoder, recipe: Any, kept_tokens: int | None) -> dict[str, Any]:
    """Answers to questions that read memories of three passages; `kept_tokens` per KV head (None: all)."""
    lm.model.eval()
    lm.drop_constants()
    method = Memory3(replace(paper(lm), kept_tokens=kept_tokens))

    def reader(example: Example) -> tuple[list[int], NextLogits]:
        with cast(lm.device, recipe):
            memories = tuple(method.write(lm, [ids[:128] for ids in encoder(*example.references)]))

        def logits(ids: list[int]) -> Tensor:
            prefix = method.prefix(lm, [[Group(0, memories)]], [len(ids)])
            return next_logits(lm.model, ids, recipe, prefix)

        return [encoder.bos], logits

    record = sample_answers(recipe.seed, encoder, reader)
    lm.model.train()
    return record


def next_logits(model: Any, ids: list[int], recipe: Any, memory: Any = None, **options: Any) -> Tensor:
    """logits_V of the token after `ids`, read with `memory` (a prefix, or None)."""
    ids_BT = torch.tensor([ids], device=model.device)
    start = 0 if memory is None else memory.offset_tokens
    positions_BT = start + torch.arange(len(ids), device=model.device)[None]
    options |= {} if memory is None else {"memory": memory}
    with cast(model.device, recipe):
        hidden_BTC = model.model(ids_BT, position_ids=positions_BT, use_cache=False, **options).last_hidden_state
        return logits_at(model, hidden_BTC[0, -1])


def sample_answers(
    seed: int, encoder: Encoder, reader: Callable[[Example], tuple[list[int], NextLogits]]
) -> dict[str, Any]:
    """`samples`: a list of question, right answer ("gold") and greedy answer.

    `reader(example)`: the token ids in front of its question, and the function that reads the prompt.
    """
    rng, samples = Random(f"{seed} samples"), []
    for example in [facts_example(rng, PASSAGES, "heldout") for _ in range(QUESTIONS)]:
        lead, logits = reader(example)
        answer = _greedy(encoder, [*lead, *question_ids(encoder, example)], logits)
        samples.append({"question": example.pairs[0][0], "gold": example.pairs[0][1], "answer": answer})
    return {"samples": samples}


def question_ids(encoder: Encoder, example: Example) -> list[int]:
    return encoder(f"Question: {example.pairs[0][0]}\nAnswer:")[0]


def _greedy(encoder: Encoder, prompt: list[int], logits: NextLogits) -> str:
    """The answer up to the end of its line. Every token reads the whole prompt again: answers are short."""
    ids, text = list(prompt), ""
    while "\n" not in text and len(ids) < len(prompt) + MOST_TOKENS:
        ids.append(int(logits(ids).argmax()))
        if ids[-1] == encoder.tokenizer.eos_token_id:
            break
        text = encoder.tokenizer.decode(ids[len(prompt) :], clean_up_tokenization_spaces=False)
    return text.partition("\n")[0].strip()
