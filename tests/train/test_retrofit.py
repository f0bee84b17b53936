"""Models of other makers get memory: they learn to read it, go on bit for bit, and come out as a folder that loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import remanence as rm
import remanence.lm.lm as lm_module
from remanence import methods
from remanence.data.squad import Context
from remanence.errors import InputError
from remanence.lm.load import from_transformers
from remanence.lm.lora import LoraConfig
from remanence.methods.base import Prompt
from remanence.methods.memory3.layout import Group
from remanence.session import Session
from remanence.sources import BankSource
from remanence.train.core import loop
from remanence.train.examples.chat import ChatBatch, ChatExamples, ChatQuestion
from remanence.train.examples.corpora import Corpora
from remanence.train.examples.retrofit import answer_ids, draw_questions, draw_text_examples, pack_questions, pack_texts
from remanence.train.export.search_head import HeadRecipe
from remanence.train.finetune.model import selected_logits
from remanence.train.finetune.retrofit import (
    RetrofitRun,
    evaluate,
    export_retrofit,
    read,
    read_losses,
    retrofit_task,
    start_retrofit_run,
)
from remanence.train.memory3.nano import export_nano, start_run
from remanence.train.recipes.nano import nano
from remanence.train.recipes.retrofit import RetrofitRecipe
from tests.lm.families import build
from tests.train.tiny_runs import PARAGRAPHS, run_stage, smaller

NAMES = ["Ada", "Bob", "Cleo", "Dora"]
COLOURS = ["red", "blue", "green", "black", "white", "pink", "grey", "gold"]
CORPORA = Corpora(
    contexts=[
        Context(f"The cat of {name} is {colour} .", ((f"What colour is the cat of {name} ?", (colour,)),))
        for name in NAMES
        for colour in COLOURS
    ],
    paragraphs=[f"The cat of {name} is {colour} ." for name in NAMES for colour in COLOURS],
)
WORDS = "<pad> <s> </s> <unk> Reference : The the cat of is . What colour ? User Bot went to harbour with".split()
TEMPLATE = "{{ bos_token }}{% for m in messages %}User : {{ m.content }} Bot :{% endfor %}"
MAPS = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}
RECIPE = RetrofitRecipe(
    num_steps=40,
    passages=(1, 1),
    squad=1.0,
    babi=0.0,
    texts=2,
    text_references=2,
    warmup_steps=5,
    eval_every=1000,
    plain_every=0,
    lr=1e-2,
    dtype="float32",
)


def asks(question: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": question},)


def words(has_more: bool) -> PreTrainedTokenizerFast:
    """A token a word; `has_more`: BOS and a chat template, else neither."""
    vocab = {word: i for i, word in enumerate([*WORDS, *NAMES, *COLOURS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    told = {"bos_token": "<s>", "chat_template": TEMPLATE} if has_more else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **told
    )


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models: a Llama with fewer KV heads than heads and its own output matrix, and one of another family."""
    folder = tmp_path_factory.mktemp("bases")
    for family in MAPS:
        model = build(family, tie_word_embeddings=False)
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
        model.generation_config.eos_token_id = 2
        model.save_pretrained(folder / family)
        words(family == "llama").save_pretrained(folder / family)
    return folder


def recipe_for(bases: Path, family: str = "llama", whole: bool = False, **fields: Any) -> RetrofitRecipe:
    lora = None if whole else LoraConfig(rank=16, alpha=32, dropout=0.0, targets=MAPS[family])
    rate = 3e-3 if whole else 1e-2
    return replace(RECIPE, base=str(bases / family), lora=lora, lr=rate, **fields)


def begin(folder: Path, recipe: RetrofitRecipe) -> RetrofitRun:
    run = start_retrofit_run(recipe, None, folder)
    run.corpora, run.log_every, run.save_seconds = CORPORA, 1000, 1e9
    return run


def train(run: RetrofitRun, num_steps: int = 40, until: int | None = None) -> None:
    loop.train(run, replace(retrofit_task(run, num_steps), ends=loop.nothing), until or num_steps)


def asked(run: RetrofitRun) -> tuple[ChatBatch, ChatBatch]:
    """Questions with their references, and without."""
    texts = draw_questions(Random("asked"), run.recipe, run.lm, run.corpora, run.encoder)
    batch = pack_questions(run.lm, texts, run.recipe)
    return batch, replace(batch, references=[], rows=[()] * len(batch.rows))


@pytest.mark.parametrize("family", MAPS)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "adapters"])
def test_with_memory_the_loss_falls_below_what_it_is_without(tmp_path: Path, bases: Path, family: str, whole: bool):
    run = begin(tmp_path, recipe_for(bases, family, whole))
    train(run)
    run.lm.model.eval()
    batch, alone = asked(run)
    with torch.no_grad():
        without = float(read_losses(run, alone, None).answer)
        found = [float(read_losses(run, batch, kept).answer) for kept in (None, 4)]
    assert max(found) < without - 0.3, (found, without)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "adapters"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, bases: Path, whole: bool):
    """With dropout, and with steps that compare with the model as it was before the first one."""
    recipe = recipe_for(bases, whole=whole, plain_every=2)
    if recipe.lora:
        recipe = replace(recipe, lora=replace(recipe.lora, dropout=0.2))
    uninterrupted = begin(tmp_path / "a", recipe)
    train(uninterrupted, 8)
    train(begin(tmp_path / "b", recipe), 8, until=5)
    second = begin(tmp_path / "b", recipe)
    task = replace(retrofit_task(second, 8), ends=loop.nothing)
    loop.resume(second, task)
    assert second.step == 5
    loop.train(second, task, 8)
    for name, tensor in uninterrupted.optimizer.masters.items():
        assert torch.equal(tensor, second.optimizer.masters[name]), name


@pytest.mark.parametrize(
    ("family", "whole", "roles"),
    [
        ("llama", True, ("write", "read")),
        ("llama", False, ("write", "read")),
        ("llama", False, ("write",)),
        ("gpt_neox", False, ("read",)),
    ],
)
def test_what_comes_out_reads_from_a_bank_as_training_did(
    tmp_path: Path, bases: Path, family: str, whole: bool, roles: Any
):
    run = begin(tmp_path / "run", recipe_for(bases, family, whole, roles=roles, memory_layers=(0, 2)))
    run_stage(run, "continual", 4)
    export_retrofit(begin(tmp_path / "run", run.recipe), tmp_path / "made")
    lm, base = rm.load(tmp_path / "made"), rm.load(bases / family)
    assert (lm.fingerprint == base.fingerprint) is (not whole and roles == ("read",))
    text, question = "The cat of Ada is pink .", "What colour is the cat of Ada ?"
    batch = pack_questions(run.lm, ChatExamples([text], [ChatQuestion(asks(question), "pink", "", (0,))]), run.recipe)
    run.lm.model.eval()
    run.lm.drop_constants()
    with torch.no_grad():
        logits_NV, index_N = read(run, batch, 8)
    prompt = lm.render([{"role": "user", "content": question}])
    assert int(index_N[0]) == len(prompt) - 1
    ids_BT = torch.tensor([prompt])
    with Session(lm, tmp_path / "bank") as session, torch.no_grad():
        session.write(text)
        method: Any = session.method
        assert method.config.memory_layers == (0, 2)
        group = Group(0, tuple(method.write(lm, [lm.encode(text)])))
        exact_V = lm.forward(ids_BT, method.prefix(lm, [[group]], [len(prompt)]))[0, -1]
        recall = BankSource(lm, method, session.bank, session.retriever)
        reading = method.read(lm, recall, [Prompt(tuple(prompt), question)])
        rounded_V = lm.forward(ids_BT, reading.prefix)[0, -1]
        base_V = base.forward(ids_BT)[0, -1]
    assert reading.memory_tokens == (8,)
    assert torch.allclose(exact_V, logits_NV[0], atol=1e-4)
    assert torch.allclose(rounded_V, logits_NV[0], atol=2e-2), "a bank holds bfloat16"
    assert not torch.allclose(base_V, logits_NV[0], atol=5e-2)
    with torch.no_grad():
        is_base = torch.equal(lm.forward(ids_BT)[0, -1], base_V)
    assert is_base is (not whole and "read" not in roles), "without memory"


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "adapters"])
def test_steps_without_memory_keep_the_model_near_its_base(tmp_path: Path, bases: Path, whole: bool):
    nats = {}
    for every in (0, 2):
        run = begin(tmp_path / str(every), recipe_for(bases, whole=whole, plain_every=every, plain_weight=3.0))
        ids_BT = pack_texts(run.lm, draw_text_examples(Random(0), run.recipe, CORPORA.paragraphs), run.recipe).ids_BT
        with torch.no_grad():
            before_BTV = run.lm.forward(ids_BT).log_softmax(-1)
        train(run, 30)
        run.lm.model.eval()
        with torch.no_grad():
            now_BTV = run.lm.forward(ids_BT).log_softmax(-1)
        nats[every] = float((before_BTV.exp() * (before_BTV - now_BTV)).sum(-1).mean())
    assert 0 < nats[2] < 0.5 * nats[0], nats


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "adapters"])
def test_layers_that_are_computed_again_give_the_same_weights(tmp_path: Path, bases: Path, whole: bool):
    runs = []
    for again in (False, True):
        runs.append(begin(tmp_path / str(again), recipe_for(bases, whole=whole, plain_every=2, checkpointing=again)))
        train(runs[-1], 4)
    for name, master in runs[0].optimizer.masters.items():
        assert torch.allclose(master, runs[1].optimizer.masters[name], atol=1e-5), name


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "cohere", "granite", "gemma3_text", "opt"])
def test_logits_of_chosen_positions_are_the_models_own(family: str):
    """Also where a family scales or bounds them, and whatever its body is called."""
    lm = from_transformers(build(family), words(True))
    ids_BT = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    index_N = torch.tensor([2, 8, 12, 20, 26])
    with torch.no_grad():
        found_NV = selected_logits(lm, ids_BT, index_N, None, None)
        every_BTV = lm.forward(ids_BT)
    assert torch.allclose(found_NV, every_BTV.flatten(0, 1)[index_N], atol=1e-5)


def test_both_roles_are_trained_and_the_base_is_not(tmp_path: Path, bases: Path):
    run = begin(tmp_path, recipe_for(bases))
    before = {name: p.detach().clone() for name, p in run.lm.model.named_parameters()}
    train(run, 3)
    changed = {name for name, p in run.lm.model.named_parameters() if not torch.equal(before[name], p)}
    assert all(any(name.endswith(f".{part}.{role}") for name in changed) for part in "ab" for role in ("write", "read"))
    assert not any(".base." in name or "embed" in name or "lm_head" in name for name in changed)


def test_rows_are_the_models_own_prompts(bases: Path):
    for family, rendered in (("llama", "User : What colour ? Bot :"), ("gpt_neox", "What colour ?")):
        lm = rm.load(bases / family)
        batch = pack_questions(
            lm, ChatExamples(["The cat is red ."], [ChatQuestion(asks("What colour ?"), "red", "", (0,))]), RECIPE
        )
        ids = batch.ids_BT[0].tolist()
        assert lm.decode(ids) == f"{rendered} red"
        assert (ids[0] == 1) is (family == "llama")
        assert ids[-1] == 2, "an answer has an end"
        told = pack_questions(
            lm,
            ChatExamples(["The cat is red ."], [ChatQuestion(asks("What ?"), "red", "", (0,))]),
            RECIPE,
            as_text=True,
        )
        assert told.references == []
        assert lm.decode(told.ids_BT[0].tolist()).startswith("Reference : The cat is red .")
    nano = rm.load("nano")
    assert nano.decode(answer_ids(nano, "pink")) == " pink\n"


def test_figures_tell_memory_from_none(tmp_path: Path, bases: Path):
    run = begin(tmp_path, recipe_for(bases))
    found = evaluate(run)
    assert {"loss_memoryall", "loss_memory8", "loss_none", "memory8_exact", "none_exact"} <= found.keys()
    assert found["loss_none"] != found["loss_memory8"] != found["loss_memoryall"]


def test_what_cannot_be_is_refused_in_a_line(tmp_path: Path, bases: Path):
    recipe = recipe_for(bases)
    for wrong, told in (
        (replace(recipe, base=""), "no model to begin with -> give --start"),
        (replace(recipe, base="nano-mplus"), "'nano-mplus' is an adapter of 'nano', not a model"),
        (replace(recipe, base="nothing"), "cannot be loaded"),
        (replace(recipe, memory_layers=(1, 7)), "has no layer 7 -> its layers are 0 to 2"),
        (replace(recipe, lora=LoraConfig(targets=("nothing",))), "has none of nothing"),
    ):
        with pytest.raises(InputError, match=told):
            start_retrofit_run(wrong, None, tmp_path / "x")
    with pytest.raises(InputError, match="holds no checkpoint"):
        export_retrofit(begin(tmp_path / "x", recipe), tmp_path / "made")
    for fields in ({"groups": 0}, {"roles": ()}, {"kept_tokens": ()}, {"memory_layers": ()}, {"decay_share": 0.0}):
        with pytest.raises(InputError):
            replace(recipe, **fields)


def test_a_warm_up_of_nano_becomes_a_model_and_gets_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)  # random tiny weights prove nothing
    recipe, folder = replace(smaller(nano()), stages=("warmup", "export")), tmp_path / "nano"
    with pytest.raises(InputError, match="holds no checkpoint of warmup"):
        export_nano(start_run(recipe, None, folder))
    run_stage(start_run(recipe, None, folder), "warmup", 3, False)
    export_nano(start_run(recipe, None, folder), HeadRecipe(layers=(0, 1), dim=8, groups=10, heldout_groups=4, steps=2))
    assert json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["of"] == "warmup"
    made = replace(RECIPE, base=str(folder / "export"), passages=(1, 2), squad=0.0, plain_every=2)
    run = start_retrofit_run(made, None, tmp_path / "run")
    run.corpora = Corpora(paragraphs=PARAGRAPHS)
    run_stage(run, "continual", 3)
    export_retrofit(run, tmp_path / "run" / "retrofit")
    lm = rm.load(tmp_path / "run" / "retrofit")
    assert methods.load("memory3", lm).config.kept_tokens == 8
    assert (lm.reads_as, lm.writes_as) == ("read", "write")
    assert json.loads((tmp_path / "run" / "retrofit" / "remanence.json").read_text())["adapter"]["base"] == str(
        folder / "export"
    )
