"""A session writes, recalls, streams, forgets and refuses; batch equals single and stream equals whole."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import remanence as rm
from remanence import methods
from remanence.bank import Bank, NewChunk

FACTS = (
    "Ada's locker code is 4417.",
    "The ferry to Lund leaves at 9:40 from pier three.",
    "Bruno keeps eleven goats behind the old mill.",
)
QUESTION = "What is Ada's locker code?"


@pytest.fixture(scope="module")
def lm() -> rm.LM:
    return rm.load("tiny")


@pytest.fixture
def session(lm: rm.LM):
    with rm.Session(lm) as session:
        for i, fact in enumerate(FACTS):
            session.write(fact, source=f"{i}.txt")
        yield session


def test_a_question_recalls_what_was_written_and_says_so(session: rm.Session):
    reply = session.generate(QUESTION, max_tokens=8)
    assert [recall.text for recall in reply.recalled] == [FACTS[0]]
    assert reply.recalled[0].source == "0.txt"
    assert 0 < reply.recalled[0].share < 1
    assert reply.usage.completion_tokens == 8
    assert reply.usage.memory_tokens == 8
    assert reply.finish == "length"


def test_nothing_relevant_recalls_nothing(session: rm.Session):
    assert session.generate("Who painted the ceiling?", max_tokens=2).recalled == []


def test_memory_changes_the_answer_and_recall_false_is_the_plain_model(session: rm.Session, lm: rm.LM):
    plain = session.generate(QUESTION, max_tokens=16, recall=False)
    ids = torch.tensor([lm.render([{"role": "user", "content": QUESTION}])])
    expected = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    assert plain.text == lm.decode(expected[0, ids.shape[1] :].tolist()).strip()
    assert plain.recalled == []
    assert session.generate(QUESTION, max_tokens=16).text != plain.text


def test_without_leaves_one_memory_out(session: rm.Session):
    recalled = session.generate(QUESTION, max_tokens=2).recalled
    assert session.generate(QUESTION, max_tokens=2, without=[recalled[0].id]).recalled == []


@pytest.mark.parametrize("method", ["memory3", "memory3:dense", "retrieved_text", "full_context"])
def test_a_batch_equals_its_rows_alone(lm: rm.LM, method: str):
    prompts = [QUESTION, "When does the ferry to Lund leave? " * 6, "How many goats does Bruno keep?", "Hm."]
    with rm.Session(lm, method=method) as session:
        for fact in FACTS:
            session.write(fact)
        batch = session.generate_batch(prompts, max_tokens=70)
        for prompt, together in zip(prompts, batch, strict=True):
            alone = session.generate(prompt, max_tokens=70)
            assert together.text == alone.text
            assert [r.id for r in together.recalled] == [r.id for r in alone.recalled]


def test_the_stream_is_the_answer(session: rm.Session):
    stream = session.stream(QUESTION, max_tokens=20, temperature=1.0, seed=5)
    text = "".join(stream)
    assert stream.reply is not None
    assert stream.reply.text == text.strip()
    assert text.strip() == session.generate(QUESTION, max_tokens=20, temperature=1.0, seed=5).text


def test_without_attribution_no_share_is_measured(session: rm.Session):
    with_shares, without = (session.generate(QUESTION, max_tokens=8, attribution=flag) for flag in (True, False))
    assert without.text == with_shares.text
    assert [recall.id for recall in without.recalled] == [recall.id for recall in with_shares.recalled]
    assert [recall.share for recall in without.recalled] == [None]


def test_seeds_repeat_and_differ(session: rm.Session):
    texts = [session.generate(QUESTION, max_tokens=12, temperature=1.5, seed=s).text for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_the_same_text_is_stored_once(session: rm.Session):
    again = session.write(FACTS[0])
    assert again.skipped == again.ids
    assert len(session.bank) == len(FACTS)


def test_forgotten_is_not_recalled(session: rm.Session):
    found = session.generate(QUESTION, max_tokens=2).recalled[0].id
    receipt = session.forget(found)
    assert receipt.exact
    assert session.generate(QUESTION, max_tokens=2).recalled == []
    with pytest.raises(rm.UnknownChunk):
        session.forget(found)


def test_cold_start_gives_the_same_answer_as_warm(lm: rm.LM):
    with rm.Session(lm) as warm, rm.Session(lm) as cold:
        warm.write(FACTS[0])
        assert cold.write(FACTS[0], warm=False).num_bytes == 0
        one, two = (s.generate(QUESTION, max_tokens=24) for s in (warm, cold))
        assert one.text == two.text
        assert cold.bank.missing_memories(cold.fingerprint) == []


def test_a_bank_outlives_its_session_and_refuses_another_method(lm: rm.LM, tmp_path: Path):
    with rm.Session(lm, bank=tmp_path / "bank") as session:
        session.write(FACTS[0])
        before = session.generate(QUESTION, max_tokens=24).text
    with rm.Session(lm, bank=str(tmp_path / "bank")) as session:
        assert session.generate(QUESTION, max_tokens=24).text == before
    with pytest.raises(rm.BankMismatch, match="kept_tokens=None"):
        rm.Session(lm, bank=tmp_path / "bank", method="memory3:dense")


def test_verify_recomputes_memories_from_text(session: rm.Session):
    report = session.bank.verify(session.recompute, fingerprint=session.fingerprint)
    assert report.problems == []
    assert report.num_recomputed == len(FACTS)


def test_expired_is_not_recalled(lm: rm.LM):
    now = time.time()
    with rm.Session(lm, bank=Bank.open(None, clock=lambda: now)) as session:
        session.write(FACTS[0], expires=now + 60)
        assert len(session.generate(QUESTION, max_tokens=2).recalled) == 1
        now += 61
        assert session.generate(QUESTION, max_tokens=2).recalled == []
        with pytest.raises(rm.InputError, match="past"):
            session.write(FACTS[1], expires=1.0)


def test_a_new_text_supersedes_the_old(lm: rm.LM):
    with rm.Session(lm) as session:
        old = session.write(FACTS[0]).ids[0]
        session.write("Ada's locker code is 9920 now.", supersedes=old)
        assert [r.text for r in session.generate(QUESTION, max_tokens=2).recalled] == ["Ada's locker code is 9920 now."]


def test_memory_is_read_again_while_generating(lm: rm.LM, monkeypatch: pytest.MonkeyPatch):
    queries: list[str] = []
    with rm.Session(lm) as session:
        session.write(FACTS[0])
        search = session.retriever.search
        monkeypatch.setattr(session.retriever, "search", lambda q, *rest: queries.append(q) or search(q, *rest))
        session.generate(QUESTION, max_tokens=140)
    assert len(queries) == 3
    assert queries[0] == QUESTION


def test_stop_strings_end_the_answer_and_are_not_part_of_it(session: rm.Session):
    whole = session.generate(QUESTION, max_tokens=40).text
    stop = whole[5:7]
    reply = session.generate(QUESTION, max_tokens=40, stop=[stop])
    assert reply.finish == "stop"
    assert reply.text == whole[: whole.index(stop)].strip()
    assert "".join(session.stream(QUESTION, max_tokens=40, stop=[stop])).strip() == reply.text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.generate("   "), "white space"),
        (lambda s: s.generate([]), "empty"),
        (lambda s: s.generate("\ud800"), "surrogate"),
        (lambda s: s.write("\ud800"), "surrogate"),
        (lambda s: s.generate("word " * 3000), "positions"),
        (lambda s: s.generate("a", max_tokens=0), "max_tokens is 0"),
        (lambda s: s.generate("a", temperature=-1.0), "temperature"),
        (lambda s: s.generate("a", top_p=0.0), "top_p"),
        (lambda s: s.write("  \n "), "white space"),
    ],
)
def test_bad_input_is_one_line_with_a_way_out(session: rm.Session, call, words: str):
    with pytest.raises(rm.InputError, match=words) as caught:
        call(session)
    assert "\n" not in str(caught.value)
    assert " -> " in str(caught.value)
    assert len(session.bank) == len(FACTS)


def test_unknown_names_are_answered_with_the_nearest(lm: rm.LM):
    with pytest.raises(rm.InputError, match="did you mean 'memory3'"):
        rm.Session(lm, method="memory_3")
    with pytest.raises(rm.InputError, match="did you mean 'dense'"):
        rm.Session(lm, method="memory3:dens")
    with pytest.raises(rm.InputError, match="nosuchmodel"):
        rm.load("nosuchmodel")


def test_a_shared_bank_can_be_given(lm: rm.LM):
    with Bank.open(None) as bank:
        session = rm.Session(lm, bank=bank)
        session.write(FACTS[1])
        assert len(bank) == 1


def test_migrate_gives_a_bank_to_another_method_and_splits_what_is_too_long(lm: rm.LM, tmp_path: Path):
    long = " ".join(f"Ada keeps key {i} under the blue stone." for i in range(3))
    with rm.Session(lm, bank=tmp_path / "bank") as session:
        session.write(long)
    config = replace(methods.load("memory3", lm).config, reference_tokens=64)
    small = methods.memory3.method.Memory3(config)
    with pytest.raises(rm.BankMismatch):
        rm.Session(lm, bank=tmp_path / "bank", method=small)
    with rm.Session(lm, bank=tmp_path / "bank", method=small, adopt=True) as session:
        with pytest.raises(rm.BankMismatch, match="migrate"):
            session.generate("Where is the key?", max_tokens=2)
        assert session.migrate() >= 3
        assert max(chunk.num_tokens for chunk in session.bank.list()) <= 64
        assert session.generate("Where does Ada keep the key?", max_tokens=2).recalled
        session.forget(*[chunk.id for chunk in session.bank.list()])
        assert session.bank.list(include_superseded=True) == []
        session.write("Another one.")
    with rm.Session(lm, bank=tmp_path / "bank", method=small) as session:
        assert session.bank.missing_memories(session.fingerprint, [c.id for c in session.bank.list()]) == []


def test_a_session_that_refuses_leaves_a_given_bank_open(lm: rm.LM):
    with Bank.open(None) as bank:
        with rm.Session(lm, bank=bank) as session:
            session.write(FACTS[0])
        with pytest.raises(rm.BankMismatch):
            rm.Session(lm, bank=bank, method="memory3:dense")
        assert len(bank) == 1


def test_options_take_one_string_and_refuse_an_empty_one(session: rm.Session):
    recalled = session.generate(QUESTION, max_tokens=2).recalled
    assert session.generate(QUESTION, max_tokens=2, without=recalled[0].id).recalled == []
    whole = session.generate(QUESTION, max_tokens=30).text
    assert session.generate(QUESTION, max_tokens=30, stop=whole[4:6]).text == whole[: whole.index(whole[4:6])].strip()
    with pytest.raises(rm.InputError, match="stop string is empty"):
        session.generate(QUESTION, stop=[""])
    assert session.generate_batch([]) == []


def test_vectors_that_a_crash_lost_are_made_when_the_text_is_written_again(lm: rm.LM):
    class Letters:
        name, dim, min_cosine = "letters", 26, 0.9

        def embed(self, texts):
            counts = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)
            return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    with Bank.open(None) as bank:
        bank.add([NewChunk(FACTS[0], 5)])  # a writer that died before it made the vector
        with rm.Session(lm, bank=bank, embedder=Letters()) as session:
            assert session.write(FACTS[0]).skipped
            assert bank.missing_vectors("letters") == []
