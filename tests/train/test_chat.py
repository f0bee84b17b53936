"""SFT and DPO: rows that can be answered and rows that cannot, the losses, and a model that its base's banks fit."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log
from pathlib import Path
from random import Random

import pytest
import torch

import remanence as rm
import remanence.lm.lm as lm_module
from remanence.data.unknown import UNKNOWN, abstains
from remanence.errors import InputError
from remanence.lm.lora import adapter
from remanence.lm.tiny import byte_tokenizer, tiny_model
from remanence.methods.memory3.layout import Group
from remanence.methods.memory3.method import Memory3, paper
from remanence.train.core import loop
from remanence.train.examples.chat import answer_positions, draw_chat_examples, pack_chat, without
from remanence.train.examples.conversations import draw_conversations, encode_conversation, read_conversations
from remanence.train.examples.corpora import Corpora
from remanence.train.finetune import chat
from remanence.train.recipes.chat import ChatPhase, large_chat
from tests.train.tiny_runs import begin_chat, run_stage, smaller_chat


@pytest.fixture
def run(tmp_path: Path):
    return chat.start_chat_run(smaller_chat(), None, tmp_path / "run")


def test_what_may_be_looked_up_holds_the_answer_or_does_not(run):
    phase = ChatPhase(1, 1e-3, groups=40, absent=0.5, empty=0.1)
    texts = draw_chat_examples(Random("rows"), phase, Corpora(), run.encoder)
    seen = [(asked, [texts.references[i] for i in asked.references]) for asked in texts.questions]
    unknown = [(asked, told) for asked, told in seen if asked.answer == UNKNOWN]
    assert 0.4 * len(seen) < len(unknown) < 0.8 * len(seen)
    assert any(not told for _, told in unknown)
    for asked, told in seen:
        assert asked.rejected != asked.answer
        if asked.answer != UNKNOWN:
            assert sum(asked.answer in text for text in told) == 1
    swapped = [asked for asked, _ in seen if asked.rejected == UNKNOWN]
    assert swapped
    assert all(asked.answer != UNKNOWN for asked in swapped)


def test_a_sentence_is_taken_out():
    assert without("Ada lives in Lyon. Her code is 44. She sings.", "44") == "Ada lives in Lyon. She sings."
    assert without("Her code is 44.", "44") == ""


@pytest.mark.parametrize("kept", [None, 8])
def test_a_batch_gives_what_each_of_its_rows_gives_alone(run, kept):
    """The log-probabilities of the answers, against one forward pass per row through the model's own command."""
    run.lm.model.eval()
    texts = draw_chat_examples(Random("rows"), run.recipe.sft, Corpora(), run.encoder)
    batch = pack_chat(run.lm, texts, run.encoder, 512, as_text=False)
    _, index_N, logp_N = chat.logprobs(run, batch, kept)
    found_B = chat.sum_by_row(batch, index_N, logp_N)
    method = Memory3(replace(run.config, kept_tokens=kept))
    for number, asked in enumerate(texts.questions):
        ids, kinds = encode_conversation(run.lm, (*asked.messages, {"role": "assistant", "content": asked.answer}))
        memories = method.write(run.lm, [batch.references[i] for i in asked.references])
        prefix = method.prefix(run.lm, [[Group(0, tuple(memories))]], [len(ids)])
        logp_TV = run.lm.forward(torch.tensor([ids]), prefix)[0].float().log_softmax(-1)
        alone = sum(logp_TV[t - 1, ids[t]] for t in range(1, len(ids)) if kinds[t])
        assert torch.allclose(found_B[number], alone, atol=1e-3)


def test_as_text_the_references_stand_in_the_prompt(run):
    texts = draw_chat_examples(Random("rows"), run.recipe.sft, Corpora(), run.encoder)
    batch = pack_chat(run.lm, texts, run.encoder, 2000, as_text=True)
    assert not batch.references
    for asked, ids_T in zip(texts.questions, batch.ids_BT, strict=True):
        text = run.lm.decode(ids_T.tolist())
        assert all(f" {texts.references[i]}\n" in text for i in asked.references)
        assert asked.messages[0]["content"] in text


def test_the_loss_of_dpo_is_the_formula_and_begins_at_log_two(run):
    """-log σ(β (log π(w)/ref(w) - log π(l)/ref(l))), each log-probability by itself."""
    task = chat.dpo_task(run, 10)
    loss, _ = task.loss(0)
    nats = run.sums["loss_answer"]
    assert float(loss.detach()) == pytest.approx(log(2) + run.recipe.nll_weight * nats, abs=1e-5)
    before = {name: p.detach().clone() for name, p in run.optimizer.model.items()}
    torch.manual_seed(1)
    for p in run.optimizer.model.values():
        torch.nn.init.normal_(p, std=0.2)
    batch, kept = chat._batch(run, "dpo", 0)
    with torch.no_grad():
        run.lm.drop_constants()
        now_B = chat.sum_by_row(batch, *chat.logprobs(run, batch, kept)[1:])
        other = chat.start_chat_run(run.recipe, None, run.folder / "other")  # a model of its own, as it begins
        assert all(torch.equal(before[name], p) for name, p in other.optimizer.model.items())
        then_B = chat.sum_by_row(batch, *chat.logprobs(other, batch, kept)[1:])
        loss, _ = task.loss(0)
    half, wanted = len(now_B) // 2, 0.0
    for w in range(half):
        margin = run.recipe.beta * ((now_B[w] - then_B[w]) - (now_B[half + w] - then_B[half + w]))
        wanted += float((1 + (-margin).exp()).log()) / half
    index_N = answer_positions(batch)
    logp_N = chat.logprobs(run, batch, kept)[2].detach()
    nats = -float(logp_N[index_N < half * batch.ids_BT.shape[1]].mean())
    assert float(loss) == pytest.approx(wanted + run.recipe.nll_weight * nats, rel=1e-4)


def test_looking_does_not_change_what_is_compared(run):
    task = chat.dpo_task(run, 10)
    torch.manual_seed(1)
    for p in run.optimizer.model.values():
        torch.nn.init.normal_(p, std=0.2)
    before = float(task.loss(0)[0].detach())
    assert before != pytest.approx(log(2), abs=0.1)
    chat.evaluate(run)
    assert float(task.loss(0)[0].detach()) == before


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_killed_run_goes_on_to_the_bit(tmp_path, stage):
    ends = []
    for folder, cuts in ((tmp_path / "one", (6,)), (tmp_path / "two", (3, 6))):
        for cut in cuts:
            run, task = begin_chat(folder, smaller_chat(), stage, 6)
            if cut != cuts[0]:
                loop.resume(run, task)
            loop.train(run, task, cut)
        ends.append(dict(run.optimizer.masters))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_what_comes_out_reads_the_banks_of_its_base(tmp_path, run):
    base = rm.load("tiny")
    torch.manual_seed(1)
    for p in run.optimizer.masters.values():
        torch.nn.init.normal_(p, std=0.2)
    task = chat.sft_task(run, 2)
    loop.save(run, task)
    chat.export_chat(run, tmp_path / "chat")
    assert json.loads((tmp_path / "chat" / "remanence.json").read_text())["adapter"]["roles"] == ["read"]
    lm = rm.load(tmp_path / "chat")
    assert (lm.reads_as, lm.writes_as, lm.fingerprint) == ("read", None, base.fingerprint)
    assert adapter(lm.model, "write") == {}
    method = Memory3(paper(lm))
    references = [lm.encode("Ada's code is 4417."), lm.encode("Bob lives in Lyon.")]
    for here, there in zip(method.write(lm, references), method.write(base, references), strict=True):
        assert torch.equal(here.key_LGND, there.key_LGND)
        assert torch.equal(here.value_LGND, there.value_LGND)
    ids = torch.tensor([lm.encode("Question")])
    assert not torch.allclose(lm.forward(ids), base.forward(ids), atol=1e-3)
    run.lm.model.eval()
    with torch.no_grad():
        assert torch.allclose(lm.forward(ids), run.lm.forward(ids), atol=1e-4)


def test_an_adapter_of_unknown_role_is_refused(tmp_path):
    (tmp_path / "remanence.json").write_text('{"adapter": {"base": "tiny", "roles": ["listen"]}}')
    with pytest.raises(InputError, match="listen"):
        rm.load(tmp_path)


def test_whole_models_are_trained_and_written_by_what_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(lm_module.proof, "prove", lambda model: None)
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    recipe = replace(smaller_chat(), base=str(base), lora=None)
    run = chat.start_chat_run(recipe, None, tmp_path / "run")
    run_stage(run, "sft", 4, resume=False)
    before, after = rm.load(base).model.state_dict(), run.lm.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    chat.export_chat(run, tmp_path / "out")
    assert rm.load(tmp_path / "out").reads_as is None


def test_conversations_of_a_file(tmp_path, run):
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    more = [*said, {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In Lyon."}]
    lines = [{"messages": said, "rejected": "Bob."}, {"messages": more, "references": ["Ada is in Lyon."]}]
    path = tmp_path / "said.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    found = read_conversations(path)
    assert [one.rejected for one in found] == ["Bob.", None]
    ids, kinds = encode_conversation(run.lm, found[1].messages)
    learned = run.lm.decode([token for token, kind in zip(ids, kinds, strict=True) if kind])
    assert learned == " Ada.\n In Lyon.\n"
    assert run.lm.decode(ids) == "Question: Who?\nAnswer: Ada.\nQuestion: Where?\nAnswer: In Lyon.\n"
    assert ids[:1] == run.lm.bos
    assert ids.count(run.lm.bos[0]) == 1
    seen = [one for number in range(3) for one in draw_conversations(found, 0, number, 2)]
    assert all(seen.count(one) == 3 for one in found)
    recipe = replace(smaller_chat(), conversations=str(path))
    with_file = chat.start_chat_run(recipe, None, tmp_path / "run2")
    run_stage(with_file, "sft", 3, resume=False)
    with pytest.raises(InputError, match="rejected"):
        run_stage(with_file, "dpo", 3, resume=False)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "line 1"),
        ('{"messages": []}', "messages"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
            "ends with a message",
        ),
        ('{"messages": [{"role": "bot", "content": "a"}, {"role": "assistant", "content": "b"}]}', "role"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "x": 1}', "x"),
        ("", "no conversation"),
    ],
)
def test_a_bad_conversation_is_named(tmp_path, line, reason):
    path = tmp_path / "said.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=reason):
        read_conversations(path)


def test_dpo_alone_begins_with_the_base_and_sft_anew_takes_an_old_one_away(tmp_path):
    alone = chat.start_chat_run(replace(smaller_chat(), stages=("dpo", "export")), None, tmp_path)
    run_stage(alone, "dpo", 1, resume=False)
    with pytest.raises(InputError, match="no checkpoint of sft"):
        chat.export_chat(replace_recipe(alone, stages=("sft", "export")), tmp_path / "out")
    run = chat.start_chat_run(smaller_chat(), None, tmp_path)
    run_stage(run, "sft", 1, resume=False)
    assert not (tmp_path / "dpo").exists()
    chat.export_chat(run, tmp_path / "out")
    assert "memory" in (tmp_path / "out" / "README.md").read_text()


def replace_recipe(run, **fields):
    run.recipe = replace(run.recipe, **fields)
    return run


def test_what_a_stage_needs_is_said(tmp_path, run):
    with pytest.raises(InputError, match="sft"):
        run_stage(run, "dpo", 1, resume=False)
    with pytest.raises(InputError, match="adapter of 'nano'"):
        chat.start_chat_run(replace(smaller_chat(), base="nano-mplus"), None, tmp_path)
    with pytest.raises(InputError, match="groups is 0"):
        ChatPhase(1, 1e-3, groups=0)
    with pytest.raises(InputError, match="no checkpoint"):
        chat.export_chat(run, tmp_path / "out")
    with pytest.raises(InputError, match="memory3-2b"):
        chat.start_chat_run(large_chat("2b"), None, tmp_path / "large")


@pytest.mark.parametrize(
    ("answer", "abstained"),
    [
        ("I do not know.", True),
        ("I don't know", True),
        ("", True),
        ("Unknown", True),
        ("the blue door", False),
        ("Unknown Pleasures", False),
        ("No information desk", False),
        ("nobody", False),
    ],
)
def test_what_counts_as_abstaining(answer, abstained):
    assert abstains(answer) is abstained
