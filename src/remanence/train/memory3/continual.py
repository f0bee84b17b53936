"""Continual training with memory: references are written within the step and read as memories (Memory³ §3.6, §5.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from remanence.lm import attention
from remanence.lm.lm import LM
from remanence.methods.memory3.method import Group, Memory3, Memory3Config, Written, paper
from remanence.train.core.attention_shares import memory_shares
from remanence.train.core.loop import Task
from remanence.train.core.losses import ANSWER, Losses, answer_losses, exact_answers, targets
from remanence.train.core.model import cast, logits_at, use_fast_attention
from remanence.train.core.parallel import average, mean, own
from remanence.train.core.schedule import Schedule, phase_at, rate_at
from remanence.train.core.stages import sample_interval
from remanence.train.examples.batches import TEXT_TOKENS, Batch, context_batch, encode_example, pack, with_questions
from remanence.train.examples.mixture import Encoder, Example, draw_example, facts_example
from remanence.train.memory3.auxiliary_losses import (
    AuxiliaryTargets,
    answer_attention_loss,
    find_targets,
    selection_loss,
    word_attention_loss,
    word_pointing_loss,
)
from remanence.train.memory3.samples import sample_with_memories
from remanence.train.memory3.warmup import (
    ENDS_ROWS,
    EVAL_ROWS,
    NanoRun,
    count_flops,
    count_losses,
    evaluate_context,
    evaluate_text,
    losses_without_memory,
    mean_text_loss,
    weighted_losses,
)
from remanence.train.recipes.nano import STAGES, NanoPhase, NanoStage, StageName
from remanence.types import ExplicitMemory

ANSWER_WEIGHT, SELECTION_WEIGHT, WORDS_WEIGHT = 0.5, 0.4, 0.2
"""Weights of the auxiliary losses."""
KEPT_TOKENS = 8
PARTS = 3
"""Forward passes that write the references of a batch."""


@dataclass(frozen=True)
class MemoryBatch:
    """`references[row]`: token ids of each reference, written as memories. `ids_BT`: `<s>` and questions about them.

    `kind_BT` (int8): what each token is as a target, as in `Batch`.
    """

    references: list[list[list[int]]]
    ids_BT: Tensor
    kind_BT: Tensor
    auxiliary: AuxiliaryTargets

    def to(self, device: torch.device) -> MemoryBatch:
        return MemoryBatch(self.references, self.ids_BT.to(device), self.kind_BT.to(device), self.auxiliary.to(device))


def memory_batch(run: NanoRun, phase: NanoPhase, seed: str, split: str = "train") -> MemoryBatch:
    """Examples of the phase that have references: drills are only in steps without memory."""
    rng = Random(seed)
    only_references = replace(phase, drill=0.0)
    if split == "train":
        examples = [draw_example(rng, only_references, run.corpora, run.encoder) for _ in range(phase.rows)]
    else:
        examples = [facts_example(rng, phase, split) for _ in range(phase.rows)]
    return pack_memory(own(examples) if split == "train" else examples, phase.tokens, run.encoder).to(run.device)


def pack_memory(examples: list[Example], tokens: int, encoder: Encoder) -> MemoryBatch:
    """One row of `tokens` tokens per example; its references are cut at 128 tokens."""
    references = [[ids[:128] for ids in encoder(*example.references)] for example in examples]
    packed = pack([_encode_questions(example, encoder, tokens) for example in examples], tokens, encoder.pad)
    answers = packed.kind_BT.eq(ANSWER).tolist()
    auxiliary = find_targets(references, packed.ids_BT.tolist(), answers, encoder.frequent, encoder.ends)
    return MemoryBatch(references, packed.ids_BT, packed.kind_BT, auxiliary)


def _encode_questions(example: Example, encoder: Encoder, tokens: int) -> tuple[list[int], list[int]]:
    if example.text:
        return encode_example(example, encoder, tokens)
    return with_questions(example, encoder, tokens, [], [])


def read_memories(
    lm: LM,
    config: Memory3Config,
    batch: MemoryBatch,
    index_N: Tensor,
    writes: bool = False,
    watch: attention.AttentionCapture | None = None,
) -> tuple[Tensor, Tensor]:
    """(logits_NV at N of the flattened B·T positions, scalar auxiliary loss).

    The references of each row are written and read by all of its tokens. With `writes` a gradient reaches the writing,
    and the auxiliary losses are computed; without it their sum is 0, and `watch` captures the attention of the reading.
    """
    method = Memory3(config)
    references = [ids for row in batch.references for ids in row]
    with torch.set_grad_enabled(writes):
        parts = write_by_length(lm, method, references, gradient=writes)
    memories = iter(in_order(parts))
    rows = [tuple(next(memories) for _ in row) for row in batch.references]
    T = batch.ids_BT.shape[1]
    prefix = method.prefix(lm, [[Group(0, row)] for row in rows], [T] * len(rows))
    positions_BT = prefix.offset_tokens + torch.arange(T, device=lm.device)[None]
    last = config.memory_layers[-1]
    model: Any = lm.model
    if writes or watch is None:
        watch = attention.AttentionCapture(frozenset(config.memory_layers) if writes else frozenset())
    hidden_BTC = model.model(
        batch.ids_BT, position_ids=positions_BT, use_cache=False, memory=prefix, watch=watch
    ).last_hidden_state
    logits_NV = logits_at(model, hidden_BTC.flatten(0, 1)[index_N])
    if not writes:
        return logits_NV, logits_NV.new_zeros(())
    num_lead, auxiliary = len(method.prefix_ids(lm)), batch.auxiliary
    answer_Q = answer_attention_loss(watch.seen[last], len(config.memory_layers) - 1, rows, num_lead, auxiliary)
    records = [watch.seen[layer] for layer in config.memory_layers[:-1]]
    words = average(word_attention_loss(records, auxiliary.in_question))
    if len(config.memory_layers) > 2:  # one layer finds the words, the layer before it finds the answer
        before = watch.seen[config.memory_layers[-2]]
        at = len(config.memory_layers) - 2
        words = words + average(word_pointing_loss(before, at, rows, num_lead, auxiliary.after_answer))
    writing = _writing_losses(parts, auxiliary, num_lead)
    return logits_NV, ANSWER_WEIGHT * average(answer_Q) + WORDS_WEIGHT * words + writing


@dataclass(frozen=True)
class WrittenPart:
    """References of similar length that were written together: their numbers, the capture, and their memories."""

    numbers: list[int]
    written: Written
    memories: list[ExplicitMemory]


def write_by_length(lm: LM, method: Memory3, references: list[list[int]], *, gradient: bool) -> list[WrittenPart]:
    """Writes all references in `PARTS` passes by length: half of a single pass would be padding."""
    order = sorted(range(len(references)), key=lambda i: len(references[i]))
    size = -(-len(order) // PARTS)
    parts = []
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        written = method.write_together(lm, [references[i] for i in numbers], gradient=gradient)
        parts.append(WrittenPart(numbers, written, method.split(written, [len(references[i]) for i in numbers])))
    return parts


def in_order(parts: list[WrittenPart]) -> list[ExplicitMemory]:
    """The memories of all parts, in the order of their references."""
    by_number = {i: memory for part in parts for i, memory in zip(part.numbers, part.memories, strict=True)}
    return [by_number[i] for i in range(len(by_number))]


def _writing_losses(parts: list[WrittenPart], auxiliary: AuxiliaryTargets, num_lead: int) -> Tensor:
    """Selection and attention to words while references are written: means over all parts."""
    selection, words_before, words_behind = [], [], []
    for part in parts:
        assert part.written.weight_BLGT is not None
        width = part.written.weight_BLGT.shape[-1]
        value_RT, before = auxiliary.value_RT[part.numbers, :width], auxiliary.before_answer.of(part.numbers, width)
        selection.append(selection_loss(part.written.weight_BLGT, value_RT, KEPT_TOKENS))
        words_before.append(word_attention_loss(part.written.seen[:-1], before, num_lead))
        behind = auxiliary.behind_answer.of(part.numbers, width)  # one layer below, whose result the next layer reads
        words_behind.append(word_attention_loss(part.written.seen[:-2], behind, num_lead))
    selected, before, behind = (average(torch.cat(losses)) for losses in (selection, words_before, words_behind))
    return SELECTION_WEIGHT * selected + WORDS_WEIGHT * (before + behind)


def memory_losses(
    run: NanoRun, lm: LM, config: Memory3Config, batch: MemoryBatch, shift: int = 0, writes: bool = True
) -> Losses:
    """The losses of a batch; `total` includes the auxiliary loss. Without `writes` no gradient reaches the writing."""
    index_N = targets(batch.kind_BT, run.recipe.text_stride, shift)
    with cast(run.device, run.recipe):
        logits_NV, auxiliary = read_memories(lm, config, batch, index_N, writes=writes)
    losses = weighted_losses(run, logits_NV, index_N, batch)
    run.count(loss_hints=float(mean(auxiliary)))
    return replace(losses, total=losses.total + auxiliary)


def memory_task(run: NanoRun, num_steps: int, name: StageName = "continual") -> Task:
    """The task of a stage with memory, or of its control, which reads neither memories nor passages.

    In the others every `plain_every`-th step has its passages as text. `num_steps`: where the learning rate's schedule
    ends.
    """
    lm: LM = run.call_with_params(reading_model, run)
    recipe, stage = run.recipe, STAGES[name]
    phases = recipe.phases_of(stage)

    def loss(number: int) -> tuple[Tensor, int]:
        losses, ids_BT = _losses(run, lm, phase_at(phases, number)[1], stage, number)
        return count_losses(run, losses), ids_BT.numel()

    def rate(step: int) -> float:
        schedule: Schedule = recipe.schedule if stage.falls else "constant"
        return recipe.continual_lr * rate_at(schedule, step, num_steps, recipe.warmup_steps, recipe.decay_share)

    def evaluate(step: int) -> dict[str, Any]:
        """On running text if the phase is trained on it, else on facts."""
        _, phase = phase_at(phases, step)
        figures = (evaluate_memory_text if phase.books == 1 else evaluate_memory)(run, lm, phase.slots)
        return {"slots": phase.slots, **figures}

    def ends(step: int) -> dict[str, Any]:
        """Of running text: the loss of many examples; before the first step also the usual evaluation."""
        _, phase = phase_at(phases, step)
        if phase.books != 1:
            return {}
        figures = evaluate_memory_text(run, lm, phase.slots, ENDS_ROWS)
        many = {f"{name}_{ENDS_ROWS}": loss for name, loss in figures.items() if name.startswith("loss")}
        return many if step else {**evaluate(0), **many}

    def sample(step: int) -> dict[str, Any]:
        _, phase = phase_at(phases, step)
        return {} if phase.books == 1 else sample_with_memories(lm, run.encoder, recipe, phase.slots)

    every = sample_interval(recipe)
    return Task(name, loss, rate, evaluate, recipe.eval_every, ends, sample=sample, sample_every=every, recipe=recipe)


def _losses(run: NanoRun, lm: LM, phase: NanoPhase, stage: NanoStage, number: int) -> tuple[Losses, Tensor]:
    recipe = run.recipe
    if stage.reads and recipe.plain_every and number % recipe.plain_every == recipe.plain_every - 1:
        phase = replace(phase, tokens=phase.plain_tokens or phase.tokens)
        batch = context_batch(recipe.seed + 1, number, phase, run.corpora, run.encoder)
        count_flops(run, batch, number)
        return losses_without_memory(run, batch, number), batch.ids_BT
    batch = memory_batch(run, phase, f"{recipe.seed} memory {number}")
    if not stage.reads:
        count_flops(run, batch, number)
        return losses_without_memory(run, Batch(batch.ids_BT, batch.kind_BT), number), batch.ids_BT
    whole = recipe.whole_every and number % recipe.whole_every == recipe.whole_every - 1
    config = paper_config(lm, None if whole else phase.slots)
    written = [len(ids) for row in batch.references for ids in row]
    count_flops(run, batch, number, written=written, kept_tokens=config.kept_tokens, writes=stage.writes)
    return memory_losses(run, lm, config, batch, number, stage.writes), batch.ids_BT


def reading_model(run: NanoRun) -> LM:
    """The run's model, able to read memory. It is proved with its own attention, then gets the fast one."""
    run.model.set_attn_implementation("sdpa")
    run.model.eval()
    lm = LM(run.model, run.encoder.tokenizer, "nano")
    use_fast_attention(run.model)
    run.model.train()
    return lm


def paper_config(lm: LM, kept_tokens: int | None) -> Memory3Config:
    return replace(paper(lm), kept_tokens=kept_tokens)


def capture_memory_layers(lm: LM) -> attention.AttentionCapture:
    """Captures the attention of the memory layers."""
    return attention.AttentionCapture(frozenset(paper(lm).memory_layers))


@torch.no_grad()
def evaluate_memory(run: NanoRun, lm: LM, slots: int | None, rows: int = EVAL_ROWS) -> dict[str, float]:
    """Exact match on held-out facts read from 5 memories, of `slots` tokens per KV head (None: all) and of 8.

    `loss_*`: nats per token of answers; "none": the same questions without memory. `share_*`: the attention to memory
    at answers, with `slots` tokens.
    """
    run.model.eval()
    lm.drop_constants()
    figures = {}
    phase = NanoPhase(0, rows, 224, (5, 5), 3)
    batch = memory_batch(run, phase, f"{run.recipe.seed} heldout", "heldout")
    index_N = targets(batch.kind_BT, 10**6)
    for kept_tokens in dict.fromkeys((slots, 8)):
        config, watch = paper_config(lm, kept_tokens), capture_memory_layers(lm)
        with cast(run.device, run.recipe):
            logits_NV, _ = read_memories(lm, config, batch, index_N, watch=watch)
        if kept_tokens == slots:
            figures |= memory_shares(watch.seen, batch.ids_BT.shape[1], len(Memory3(config).prefix_ids(lm)), index_N)
        token, whole = exact_answers(logits_NV, index_N, batch.ids_BT, batch.kind_BT)
        loss = answer_losses(logits_NV, index_N, batch.ids_BT, batch.kind_BT, 0.0).answer
        name = f"memory{'all' if kept_tokens is None else kept_tokens}"
        figures |= {f"{name}_token": round(token, 3), f"{name}_exact": round(whole, 3)}
        figures |= {f"loss_{name}": round(float(loss), 3)}
    figures["loss_none"] = round(float(losses_without_memory(run, Batch(batch.ids_BT, batch.kind_BT)).answer), 3)
    figures |= evaluate_context(run, rows)
    run.model.train()
    return figures


@torch.no_grad()
def evaluate_memory_text(run: NanoRun, lm: LM, slots: int | None, rows: int = EVAL_ROWS) -> dict[str, float]:
    """`loss_text_memory`: nats per token of held-out text that reads memories of earlier paragraphs; and without.

    `share_*`: the attention to memory of every eighth token of the first examples.
    """
    lm.drop_constants()
    config, shares = paper_config(lm, slots), dict[str, float]()

    def read(part: list[Example]) -> tuple[Tensor, MemoryBatch]:
        batch, watch = pack_memory(part, TEXT_TOKENS, run.encoder).to(run.device), capture_memory_layers(lm)
        with cast(run.device, run.recipe):
            logits_NV, _ = read_memories(lm, config, batch, targets(batch.kind_BT, 1), watch=watch)
        if not shares:
            num_lead = len(Memory3(config).prefix_ids(lm))
            shares.update(memory_shares(watch.seen, batch.ids_BT.shape[1], num_lead, targets(batch.kind_BT, 8)))
        return logits_NV, batch

    return {**mean_text_loss(run, rows, "loss_text_memory", read), **evaluate_text(run, rows), **shares}
