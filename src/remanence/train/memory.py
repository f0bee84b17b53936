"""Stage two, continual training with memory: the same questions, the passages written and read as memories."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from remanence.lm import attention
from remanence.lm.lm import LM
from remanence.methods.memory3.method import Group, Memory3, Memory3Config, Written, paper
from remanence.train.batches import TEXT_TOKENS, Batch, pack, plain_batch, plain_row, with_questions
from remanence.train.hints import Hints, find_answers, gathering_loss, keeping_loss, looking_loss, pointing_loss
from remanence.train.loop import Task
from remanence.train.losses import ANSWER, Losses, answer_losses, exact_answers, targets
from remanence.train.model import cast, logits_at, use_fast_attention
from remanence.train.parallel import average, mean, own
from remanence.train.plain import (
    ENDS_ROWS,
    EVAL_ROWS,
    ModelRun,
    count_flops,
    counted,
    evaluate_plain,
    evaluate_text,
    mean_text_loss,
    phase_at,
    plain_losses,
    weights_of,
)
from remanence.train.recipes.nano import STAGES, Phase, Stage, StageName
from remanence.train.row import Row
from remanence.train.rows import Encoder, draw_row, facts_row
from remanence.train.samples import from_memories, samples_every
from remanence.train.schedule import Schedule, rate_at
from remanence.train.shares import memory_shares
from remanence.types import ExplicitMemory

LOOK, KEEP, GATHER = 0.5, 0.4, 0.2
KEPT = 8
PARTS = 3


@dataclass(frozen=True)
class MemoryBatch:
    """`references[row]`: token lists, written as memories; `ids_BT`: `<s>` and the questions about them."""

    references: list[list[list[int]]]
    ids_BT: Tensor
    kind_BT: Tensor
    hints: Hints

    def to(self, device: torch.device) -> MemoryBatch:
        return MemoryBatch(self.references, self.ids_BT.to(device), self.kind_BT.to(device), self.hints.to(device))


def memory_batch(run: ModelRun, phase: Phase, seed: str, split: str = "train") -> MemoryBatch:
    """Rows of the phase that have references (drills are for plain steps)."""
    rng = Random(seed)
    only_references = replace(phase, drill=0.0)
    if split == "train":
        rows = [draw_row(rng, only_references, run.corpora, run.encoder) for _ in range(phase.rows)]
    else:
        rows = [facts_row(rng, phase, split) for _ in range(phase.rows)]
    return pack_memory(own(rows) if split == "train" else rows, phase.tokens, run.encoder).to(run.device)


def pack_memory(rows: list[Row], tokens: int, encoder: Encoder) -> MemoryBatch:
    references = [[ids[:128] for ids in encoder(*row.references)] for row in rows]
    packed = pack([_beside_memories(row, encoder, tokens) for row in rows], tokens, encoder.pad)
    answers = packed.kind_BT.eq(ANSWER).tolist()
    hints = find_answers(references, packed.ids_BT.tolist(), answers, encoder.frequent, encoder.ends)
    return MemoryBatch(references, packed.ids_BT, packed.kind_BT, hints)


def _beside_memories(row: Row, encoder: Encoder, tokens: int) -> tuple[list[int], list[int]]:
    return plain_row(row, encoder, tokens) if row.plain else with_questions(row, encoder, tokens, [], [])


def read_memories(
    lm: LM,
    config: Memory3Config,
    batch: MemoryBatch,
    index_N: Tensor,
    hint: bool = False,
    watch: attention.AttentionCapture | None = None,
) -> tuple[Tensor, Tensor]:
    """logits_NV at chosen positions and, with `hint`, the losses of all hints (else 0).

    Every row's references are written, and read by all of its tokens; without `hint` no gradient reaches the writing,
    and the reading is shown to `watch`.
    """
    method = Memory3(config)
    references = [ids for row in batch.references for ids in row]
    with torch.set_grad_enabled(hint):
        parts = write_by_length(lm, method, references, gradient=hint)
    found = {i: memory for part in parts for i, memory in zip(part.rows, part.memories, strict=True)}
    every = (found[i] for i in range(len(references)))
    rows = [tuple(next(every) for _ in row) for row in batch.references]
    T = batch.ids_BT.shape[1]
    prefix = method.prefix(lm, [[Group(0, row)] for row in rows], [T] * len(rows))
    positions_BT = prefix.offset_tokens + torch.arange(T, device=lm.device)[None]
    last = config.memory_layers[-1]
    model: Any = lm.model
    if hint or watch is None:
        watch = attention.AttentionCapture(frozenset(config.memory_layers) if hint else frozenset())
    hidden_BTC = model.model(
        batch.ids_BT, position_ids=positions_BT, use_cache=False, memory=prefix, watch=watch
    ).last_hidden_state
    logits_NV = logits_at(model, hidden_BTC.flatten(0, 1)[index_N])
    if not hint:
        return logits_NV, logits_NV.new_zeros(())
    num_lead, hints = len(method.prefix_ids(lm)), batch.hints
    looking = looking_loss(watch.seen[last], len(config.memory_layers) - 1, rows, num_lead, hints)
    gathering = average(gathering_loss([watch.seen[layer] for layer in config.memory_layers[:-1]], hints.asked))
    if len(config.memory_layers) > 2:  # a layer to find the words, and one before it where they find the answer
        before = config.memory_layers[-2]
        gathering = gathering + average(
            pointing_loss(watch.seen[before], len(config.memory_layers) - 2, rows, num_lead, hints.after)
        )
    return logits_NV, LOOK * average(looking) + GATHER * gathering + _writing_losses(parts, hints, num_lead)


@dataclass(frozen=True)
class Part:
    """References of like length, written together: their numbers, what was seen, and their memories."""

    rows: list[int]
    written: Written
    memories: list[ExplicitMemory]


def write_by_length(lm: LM, method: Memory3, references: list[list[int]], *, gradient: bool) -> list[Part]:
    """All references in a few passes, short ones apart from long ones: half of one pass would be padding."""
    order = sorted(range(len(references)), key=lambda i: len(references[i]))
    size = -(-len(order) // PARTS)
    parts = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        written = method.write_together(lm, [references[i] for i in rows], gradient=gradient)
        parts.append(Part(rows, written, method.split(written, [len(references[i]) for i in rows])))
    return parts


def _writing_losses(parts: list[Part], hints: Hints, num_lead: int) -> Tensor:
    """Keeping and gathering while references are written: means over all parts."""
    keeping, gathering, looking_back = [], [], []
    for part in parts:
        assert part.written.weight_BLGT is not None
        width = part.written.weight_BLGT.shape[-1]
        value_RT, told = hints.value_RT[part.rows, :width], hints.told.of(part.rows, width)
        keeping.append(keeping_loss(part.written.weight_BLGT, value_RT, KEPT))
        gathering.append(gathering_loss(part.written.seen[:-1], told, num_lead))
        behind = hints.behind.of(part.rows, width)  # below the layer that looks at them: it must see what they found
        looking_back.append(gathering_loss(part.written.seen[:-2], behind, num_lead))
    kept, gathered, looked_back = (average(torch.cat(found)) for found in (keeping, gathering, looking_back))
    return KEEP * kept + GATHER * (gathered + looked_back)


def memory_losses(
    run: ModelRun, lm: LM, config: Memory3Config, batch: MemoryBatch, shift: int = 0, writes: bool = True
) -> Losses:
    """The loss of `answer_losses`, with the hints' in `total`; without `writes` no gradient reaches the writing."""
    index_N = targets(batch.kind_BT, run.recipe.text_stride, shift)
    with cast(run.device, run.recipe):
        logits_NV, hinted = read_memories(lm, config, batch, index_N, hint=writes)
    losses = answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, *weights_of(run.recipe))
    run.count(loss_hints=float(mean(hinted)))
    return replace(losses, total=losses.total + hinted)


def continual(run: ModelRun, num_steps: int, name: StageName = "continual") -> Task:
    """The task of a stage with memory, or of its control, where no step has memory nor passages as text.

    Every `plain_every`-th step of the others is without memory, too. The learning rate falls to zero over the last
    `decay_share` of the steps.
    """
    lm: LM = run.within(reading_model, run)
    recipe, stage = run.recipe, STAGES[name]
    phases = recipe.phases_of(stage)

    def loss(number: int) -> tuple[Tensor, int]:
        losses, ids_BT = _losses(run, lm, phase_at(phases, number), stage, number)
        return counted(run, losses), ids_BT.numel()

    def rate(step: int) -> float:
        schedule: Schedule = recipe.schedule if stage.falls else "constant"
        return recipe.continual_lr * rate_at(schedule, step, num_steps, recipe.warmup_steps, recipe.decay_share)

    def evaluate(step: int) -> dict[str, Any]:
        """Running text where the run trains on it, else facts."""
        phase = phase_at(phases, step)
        found = (evaluate_memory_text if phase.books == 1 else evaluate_memory)(run, lm, phase.slots)
        return {"slots": phase.slots, **found}

    def ends(step: int) -> dict[str, Any]:
        """Running text of many rows, for a recipe of running text; before the first step with few rows too."""
        phase = phase_at(phases, step)
        if phase.books != 1:
            return {}
        found = evaluate_memory_text(run, lm, phase.slots, ENDS_ROWS)
        many = {f"{name}_{ENDS_ROWS}": loss for name, loss in found.items() if name.startswith("loss")}
        return many if step else {**evaluate(0), **many}

    def sample(step: int) -> dict[str, Any]:
        phase = phase_at(phases, step)
        return {} if phase.books == 1 else from_memories(run, lm, phase.slots)

    every = samples_every(recipe)
    return Task(name, loss, rate, evaluate, recipe.eval_every, ends, sample=sample, sample_every=every, recipe=recipe)


def _losses(run: ModelRun, lm: LM, phase: Phase, stage: Stage, number: int) -> tuple[Losses, Tensor]:
    recipe = run.recipe
    if stage.reads and recipe.plain_every and number % recipe.plain_every == recipe.plain_every - 1:
        plain = replace(phase, tokens=phase.plain_tokens or phase.tokens)
        batch = plain_batch(recipe.seed + 1, number, plain, run.corpora, run.encoder)
        count_flops(run, batch, number)
        return plain_losses(run, batch, number), batch.ids_BT
    read = memory_batch(run, phase, f"{recipe.seed} memory {number}")
    if not stage.reads:
        count_flops(run, read, number)
        return plain_losses(run, Batch(read.ids_BT, read.kind_BT), number), read.ids_BT
    whole = recipe.whole_every and number % recipe.whole_every == recipe.whole_every - 1
    config = configured(lm, None if whole else phase.slots)
    written = [len(ids) for row in read.references for ids in row]
    count_flops(run, read, number, written=written, kept_tokens=config.kept_tokens, writes=stage.writes)
    return memory_losses(run, lm, config, read, number, stage.writes), read.ids_BT


def reading_model(run: ModelRun) -> LM:
    """The run's model with the seam that reads memory, proven with its own attention, then given the fast one."""
    run.model.set_attn_implementation("sdpa")
    run.model.eval()
    lm = LM(run.model, run.encoder.tokenizer, "nano")
    use_fast_attention(run.model)
    run.model.train()
    return lm


def configured(lm: LM, slots: int | None) -> Memory3Config:
    return replace(paper(lm), kept_tokens=slots)


def watching(lm: LM) -> attention.AttentionCapture:
    """Shows what the memory layers attend to."""
    return attention.AttentionCapture(frozenset(paper(lm).memory_layers))


@torch.no_grad()
def evaluate_memory(run: ModelRun, lm: LM, slots: int | None, rows: int = EVAL_ROWS) -> dict[str, float]:
    """Exact match on held-out facts read from 5 memories (as trained now, and with the paper's 8 tokens).

    `loss_*` is in nats per token of answers; "none": the same questions without memory. `share_*`: the attention on
    memory where an answer is read as trained now.
    """
    run.model.eval()
    lm.drop_constants()
    found = {}
    phase = Phase(0, rows, 224, (5, 5), 3)
    batch = memory_batch(run, phase, f"{run.recipe.seed} heldout", "heldout")
    index_N = targets(batch.kind_BT, 10**6)
    for kept in dict.fromkeys((slots, 8)):
        config, watch = configured(lm, kept), watching(lm)
        with cast(run.device, run.recipe):
            logits_NV, _ = read_memories(lm, config, batch, index_N, watch=watch)
        if kept == slots:
            found |= memory_shares(watch.seen, batch.ids_BT.shape[1], len(Memory3(config).prefix_ids(lm)), index_N)
        token, whole = exact_answers(logits_NV, index_N, batch.ids_BT, batch.kind_BT)
        loss = answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, 0.0).answer
        name = f"memory{'all' if kept is None else kept}"
        found |= {f"{name}_token": round(token, 3), f"{name}_exact": round(whole, 3)}
        found |= {f"loss_{name}": round(float(loss), 3)}
    found["loss_none"] = round(float(plain_losses(run, Batch(batch.ids_BT, batch.kind_BT)).answer), 3)
    found |= evaluate_plain(run, rows)
    run.model.train()
    return found


@torch.no_grad()
def evaluate_memory_text(run: ModelRun, lm: LM, slots: int | None, rows: int = EVAL_ROWS) -> dict[str, float]:
    """`loss_text_memory`: nats per token of running text that reads memories of paragraphs before it; and without.

    `share_*`: the attention on memory of every eighth token of the first rows.
    """
    lm.drop_constants()
    config, shares = configured(lm, slots), dict[str, float]()

    def read(part: list[Row]) -> tuple[Tensor, MemoryBatch]:
        batch, watch = pack_memory(part, TEXT_TOKENS, run.encoder).to(run.device), watching(lm)
        with cast(run.device, run.recipe):
            logits_NV, _ = read_memories(lm, config, batch, targets(batch.kind_BT, 1), watch=watch)
        if not shares:
            num_lead = len(Memory3(config).prefix_ids(lm))
            shares.update(memory_shares(watch.seen, batch.ids_BT.shape[1], num_lead, targets(batch.kind_BT, 8)))
        return logits_NV, batch

    return {**mean_text_loss(run, rows, "loss_text_memory", read), **evaluate_text(run, rows), **shares}
