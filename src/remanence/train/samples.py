"""What a model answers to a few held-out questions, word for word, so that one sees what it has learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from remanence.lm.lm import LM
from remanence.methods.memory3.method import Group, Memory3, paper
from remanence.train.model import cast, logits_at
from remanence.train.recipes.nano import Phase
from remanence.train.row import Row
from remanence.train.rows import Encoder, facts_row

if TYPE_CHECKING:
    from remanence.train.latent_run import MPlusRun
    from remanence.train.plain import ModelRun

QUESTIONS, MOST_TOKENS = 3, 16
PASSAGES = Phase(0, 1, 0, (3, 3), 2)

Logits = Callable[[list[int]], Tensor]
"""logits_V of the token after these."""


def samples_every(recipe: Any) -> int:
    return recipe.eval_every if recipe.sample_every is None else recipe.sample_every


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def from_text(run: ModelRun) -> dict[str, Any]:
    """Questions after three passages as text: what the warm-up trains."""
    run.model.eval()

    def reading(row: Row) -> tuple[list[int], Logits]:
        passages = [id for ids in run.encoder(*(f" {text}\n" for text in row.references)) for id in ids]
        return [*run.encoder.header, *passages, run.encoder.bos], lambda ids: _logits(run, run.model, ids)

    found = _samples(run.recipe.seed, run.encoder, reading)
    run.model.train()
    return found


@torch.no_grad()
def from_memories(run: ModelRun, lm: LM, slots: int | None) -> dict[str, Any]:
    """Questions that read memories of three passages, `slots` tokens kept per KV head (None: all)."""
    run.model.eval()
    lm.drop_constants()
    method = Memory3(replace(paper(lm), kept_tokens=slots))

    def reading(row: Row) -> tuple[list[int], Logits]:
        with cast(run.device, run.recipe):
            memories = tuple(method.write(lm, [ids[:128] for ids in run.encoder(*row.references)]))

        def logits(ids: list[int]) -> Tensor:
            prefix = method.prefix(lm, [[Group(0, memories)]], [len(ids)])
            return _logits(run, run.model, ids, prefix)

        return [run.encoder.bos], logits

    found = _samples(run.recipe.seed, run.encoder, reading)
    run.model.train()
    return found


@torch.no_grad()
def from_pool(run: MPlusRun) -> dict[str, Any]:
    """Questions that read a pool which three passages were just written to."""
    lm, method = run.lm, run.method
    lm.model.eval()
    start = replace(method.fresh(lm), row_LNC=run.pool.row_LNC)

    def reading(row: Row) -> tuple[list[int], Logits]:
        pool, asked = start, len(_question(run.encoder, row))
        with cast(lm.device, run.recipe):
            for ids in run.encoder(*row.references):
                pool = method.add(lm, pool, ids[: method.config.chunk_tokens])

        def logits(ids: list[int]) -> Tensor:
            asked_BT = (torch.arange(len(ids)) < asked).long()[None].to(lm.device)
            return _logits(run, lm.model, ids, method.prefix(lm, [pool], asked_BT), role="read")

        return [], logits

    found = _samples(run.recipe.seed, run.encoder, reading)
    lm.model.train()
    return found


def _logits(run: Any, model: Any, ids: list[int], memory: Any = None, **how: Any) -> Tensor:
    ids_BT = torch.tensor([ids], device=model.device)
    start = 0 if memory is None else memory.offset_tokens
    positions_BT = start + torch.arange(len(ids), device=model.device)[None]
    how |= {} if memory is None else {"memory": memory}
    with cast(model.device, run.recipe):
        hidden_BTC = model.model(ids_BT, position_ids=positions_BT, use_cache=False, **how).last_hidden_state
        return logits_at(model, hidden_BTC[0, -1])


def _samples(seed: int, encoder: Encoder, reading: Callable[[Row], tuple[list[int], Logits]]) -> dict[str, Any]:
    """`samples`: question, right answer and greedy answer. `reading`: what stands before a question, and its reader."""
    rng, found = Random(f"{seed} samples"), []
    for row in [facts_row(rng, PASSAGES, "heldout") for _ in range(QUESTIONS)]:
        lead, logits = reading(row)
        answer = _greedy(encoder, [*lead, *_question(encoder, row)], logits)
        found.append({"question": row.pairs[0][0], "gold": row.pairs[0][1], "answer": answer})
    return {"samples": found}


def _question(encoder: Encoder, row: Row) -> list[int]:
    return encoder(f"Question: {row.pairs[0][0]}\nAnswer:")[0]


def _greedy(encoder: Encoder, prompt: list[int], logits: Logits) -> str:
    """Up to the end of the line; read anew for every token, since an answer is a few tokens."""
    ids, text = list(prompt), ""
    while "\n" not in text and len(ids) < len(prompt) + MOST_TOKENS:
        ids.append(int(logits(ids).argmax()))
        if ids[-1] == encoder.tokenizer.eos_token_id:
            break
        text = encoder.tokenizer.decode(ids[len(prompt) :], clean_up_tokenization_spaces=False)
    return text.partition("\n")[0].strip()
