"""A session whose memory is a latent pool: asked, forgotten, kept for moments to go back to, and on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from remanence.bank import Bank
from remanence.errors import BankCorrupted, BankMismatch, InputError, UnknownChunk
from remanence.methods.base import Reading
from remanence.methods.mplus.bank_pool import POOL_FILE, BankPool, reading_order
from remanence.methods.mplus.pool import PoolHistory
from remanence.session import Session
from remanence.sources import BankSource
from remanence.tensor_file import read_tensors, write_tensors
from remanence.text.formats import Document
from tests.methods.mplus.helpers import small, small_lm
from tests.methods.mplus.test_pool_file import equal

LM = small_lm()
METHOD = small(LM)
TEXTS = ["Ada owns a cat.", "The door code is 4417.", "Dee sells green tea.", "Cy sings every night."]
OTHERS = ["Nobody came.", "Fay has left the town.", "The tower is open."]


@pytest.fixture
def session():
    with Session(LM, None, METHOD) as session:
        for text in TEXTS:
            session.write(text, source=text[:3])
        yield session


def state(session: Session) -> BankPool:
    assert isinstance(session._state, BankPool)
    return session._state


def pool(session: Session) -> PoolHistory:
    return state(session).update()


def ask(session: Session, **options) -> str:
    return session.generate("Who owns a cat?", max_tokens=8, **options).text


def never_read(*texts: str) -> PoolHistory:
    with Session(LM, None, METHOD) as session:
        for text in texts:
            session.write(text, source=text[:3])
        return pool(session)


def test_an_answer_reads_the_pool_and_says_which_texts_it_attended_to(session):
    reply = session.generate("Who owns a cat?", max_tokens=8)
    assert 0 < len(reply.recalled) <= 4
    assert {recall.text for recall in reply.recalled} <= set(TEXTS)
    assert all(0 < recall.share < 1 for recall in reply.recalled)
    assert [r.share for r in reply.recalled] == sorted((r.share for r in reply.recalled), reverse=True)
    assert reply.usage.memory_tokens == METHOD.config.pool_rows + METHOD.config.long_slots
    with Session(LM, None, METHOD) as empty:
        assert ask(empty) != reply.text
        assert empty.generate("Who owns a cat?", max_tokens=8).recalled == []


def test_a_batch_is_each_question_alone(session):
    questions = ["Who owns a cat?", "Code?", "What does Dee sell in the town, and to whom does she sell it?"]
    together = session.generate_batch(questions, max_tokens=6)
    for question, reply in zip(questions, together, strict=True):
        alone = session.generate(question, max_tokens=6)
        assert reply.text == alone.text
        for one, other in zip(reply.recalled, alone.recalled, strict=True):
            assert one.id == other.id
            assert one.share == pytest.approx(other.share, abs=1e-4)


def test_streaming_and_an_answer_without_memory(session):
    stream = session.stream("Who owns a cat?", max_tokens=8)
    assert "".join(stream) == ask(session)
    with Session(LM, None, "retrieved_text") as plain:
        assert ask(session, recall=False) == ask(plain, recall=False)


def test_forgetting_leaves_the_pool_that_never_read_it(session):
    (chunk,) = [chunk for chunk in session.bank.list() if chunk.text == TEXTS[1]]
    assert session.forget(chunk.id).exact
    assert equal(pool(session).pool, never_read(TEXTS[0], *TEXTS[2:]).pool)
    assert chunk.id not in {r.id for r in session.generate("Which code?", max_tokens=4).recalled}


def test_without_a_text_an_answer_is_that_of_a_session_that_never_read_it(session):
    chunk = session.bank.list()[1]
    before = pool(session)
    reply = session.generate("Who owns a cat?", max_tokens=8, without=[chunk.id])
    assert chunk.id not in {r.id for r in reply.recalled}
    assert pool(session) is before
    session.forget(chunk.id)
    assert ask(session) == reply.text


def test_what_superseded_or_expired_texts_said_is_gone(session):
    old = session.bank.list()[0]
    session.write("Ada owns a dog.", source="Ada", supersedes=old.id)
    assert equal(pool(session).pool, never_read(*TEXTS[1:], "Ada owns a dog.").pool)


def test_rollback_is_the_moment_before_bit_for_bit(session):
    before, answer = session.snapshot(), ask(session)
    for text in OTHERS:
        session.write(text)
    assert ask(session) != answer or not equal(pool(session).pool, before.state.pool)
    receipt = session.rollback(before)
    assert len(receipt.ids) == len(OTHERS)
    assert equal(pool(session).pool, before.state.pool)
    assert ask(session) == answer


def test_a_moment_with_a_forgotten_text_cannot_come_back(session):
    before = session.snapshot()
    session.write(OTHERS[0])
    session.forget(session.bank.list()[0].id)
    with pytest.raises(UnknownChunk, match="was forgotten or has expired since"):
        session.rollback(before)
    assert len(session.bank) == len(TEXTS)


def test_reset_is_the_first_pool(session):
    session.reset()
    assert len(session.bank) == 0
    assert equal(pool(session).pool, METHOD.fresh(LM, 0))


def test_a_fork_remembers_the_same_and_then_goes_its_own_way(session):
    with session.fork() as other:
        assert equal(pool(other).pool, pool(session).pool)
        other.write(OTHERS[0])
        assert len(session.bank) == len(TEXTS)
        assert not equal(pool(other).pool, pool(session).pool)
    assert ask(session)


def test_a_saved_moment_is_loaded_whole_or_not_at_all(session, tmp_path: Path):
    session.save(tmp_path / "kept")
    with Session(LM, None, METHOD) as other:
        other.load(tmp_path / "kept")
        assert equal(pool(other).pool, pool(session).pool)
        assert ask(other) == ask(session)
    file = tmp_path / "kept" / "pool.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with Session(LM, None, METHOD) as other:
        with pytest.raises(BankCorrupted):
            other.load(tmp_path / "kept")
        assert len(other.bank) == 0
    with pytest.raises(InputError, match="new or empty folder"):
        session.save(tmp_path / "kept")
    with Session(LM, None, METHOD) as other, pytest.raises(InputError, match="no saved session"):
        other.load(tmp_path)


def test_a_pool_of_other_settings_is_refused(session, tmp_path: Path):
    session.save(tmp_path / "kept")
    for options in ({"method": small(LM, drop="redundancy")}, {"method": METHOD, "seed": 1}):
        with Session(LM, None, **options) as other:
            with pytest.raises(BankMismatch, match="another model"):
                other.load(tmp_path / "kept")
            assert len(other.bank) == 0
            with pytest.raises(BankMismatch, match="another model"):
                other.rollback(session.snapshot())


def test_an_empty_session_is_saved_loaded_and_forked(tmp_path: Path):
    with Session(LM, None, METHOD) as empty, Session(LM, None, METHOD) as other:
        empty.save(tmp_path / "kept")
        other.write(TEXTS[0])
        before = pool(other)
        other.load(tmp_path / "kept")
        assert pool(other) is before
        with empty.fork() as fork:
            assert len(fork.bank) == 0


def test_short_texts_of_one_commit_are_written_together_and_the_receipt_says_so():
    with Session(LM, None, METHOD) as session:
        receipt = session.write_documents([Document(text, "", {}) for text in ("Hm.", "Bo sings.", TEXTS[0])])
        assert [len(write.ids) for write in pool(session).writes] == [2, 1]
        assert receipt.merged == 2
        assert session.write("Oh.").merged == 0, "a text that came by itself is written as it is"
        assert len(pool(session).writes) == 3


def test_a_damaged_file_beside_the_bank_costs_reading_again(tmp_path: Path):
    with Session(LM, tmp_path / "bank", METHOD) as session:
        session.write(TEXTS[0])
        kept = pool(session)
    (file,) = (tmp_path / "bank" / "pools").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with Session(LM, tmp_path / "bank", METHOD) as session, pytest.warns(UserWarning, match="made again"):
        assert equal(pool(session).pool, kept.pool)


def test_a_text_forgotten_elsewhere_while_a_session_ends_is_in_no_file(tmp_path: Path):
    """Another process forgets a text between this one's last reading and its writing of the pool."""
    with Session(LM, tmp_path / "bank", METHOD) as session:
        ids = [id for text in TEXTS for id in session.write(text, source=text[:3]).ids]
        pool(session)
        with Bank.open(tmp_path / "bank") as other:
            other.forget([ids[1]])
        assert not session.bank.keep_pool("f" * 64, state(session).ids, lambda path: path.write_text("rows"))
    with Session(LM, tmp_path / "bank", METHOD) as session:
        assert not {id for write in state(session)._held().writes for id in write.ids} & {ids[1]}
        assert equal(pool(session).pool, never_read(TEXTS[0], *TEXTS[2:]).pool)


def test_drafts_of_a_killed_writer_are_removed(tmp_path: Path):
    with Session(LM, tmp_path / "bank", METHOD) as session:
        (id,) = session.write(TEXTS[0]).ids
    draft = tmp_path / "bank" / "pools" / ".x-y.safetensors.0123.tmp"
    draft.write_text("rows")
    with Bank.open(tmp_path / "bank") as bank:
        bank.forget([id])
    assert not list((tmp_path / "bank" / "pools").iterdir())


def test_an_answer_is_noted_with_every_text_that_the_pool_has_read(session):
    assert session.read_ids == {chunk.id for chunk in session.bank.list()}
    with Session(LM, None, "retrieved_text") as other:
        assert other.read_ids == set()


def test_the_pool_is_beside_the_bank_and_goes_when_a_text_goes(tmp_path: Path):
    with Session(LM, tmp_path / "bank", METHOD) as one:
        ids = [id for text in TEXTS for id in one.write(text, source=text[:3]).ids]
        answer, kept = ask(one), pool(one)
    (file,) = (tmp_path / "bank" / "pools").iterdir()
    with Session(LM, tmp_path / "bank", METHOD) as again:
        assert equal(pool(again).pool, kept.pool)
        assert ask(again) == answer
        again.bank.forget([ids[0]])
        assert not file.exists()
        assert equal(pool(again).pool, never_read(*TEXTS[1:]).pool)
    assert file.exists()


def test_a_text_that_was_forgotten_before_the_session_ended_is_in_no_file(tmp_path: Path):
    with Session(LM, tmp_path / "bank", METHOD) as session:
        ids = [id for text in TEXTS for id in session.write(text, source=text[:3]).ids]
        session.forget(ids[2])
    with Session(LM, tmp_path / "bank", METHOD) as session:
        held = state(session)._held()
        assert not {id for write in held.writes for id in write.ids} & {ids[2]}
        assert equal(pool(session).pool, never_read(TEXTS[0], TEXTS[1], TEXTS[3]).pool)


def test_namespaces_have_pools_of_their_own(tmp_path: Path):
    for name, text in (("one", TEXTS[0]), ("two", TEXTS[1])):
        with Session(LM, tmp_path / "bank", METHOD, namespace=name) as session:
            session.write(text)
    assert len(list((tmp_path / "bank" / "pools").iterdir())) == 2
    with Session(LM, tmp_path / "bank", METHOD, namespace="one") as session:
        assert equal(pool(session).pool, never_read(TEXTS[0]).pool)
        session.reset()
    assert len(list((tmp_path / "bank" / "pools").iterdir())) == 2, "an emptied pool is kept too"


def test_hidden_states_that_are_not_finite_enter_neither_pool_nor_bank(session, monkeypatch):
    before, texts = pool(session), session.bank.list()
    sound = type(METHOD).encode
    monkeypatch.setattr(type(METHOD), "encode", lambda self, lm, last, chunks: torch.full_like(last, torch.nan))
    with pytest.raises(InputError, match="not finite"):
        session.write(OTHERS[0])
    assert state(session)._history is before
    assert session.bank.list() == texts
    (cold,) = session.write(OTHERS[0], warm=False).ids
    with pytest.raises(
        InputError,
        match=rf"of this text: chunk {cold} -> forget it, where it is stored \(`remanence bank forget {cold}",
    ):
        session.generate("Who?", max_tokens=2)
    monkeypatch.setattr(type(METHOD), "encode", sound)
    session.forget(cold)
    session.write(OTHERS[1])
    assert equal(pool(session).pool, never_read(*(chunk.text for chunk in reading_order(session.bank.list()))).pool)


def test_a_text_far_behind_the_best_is_not_named(session):
    chunks = session.bank.list()
    recall = BankSource(LM, METHOD, session.bank, session.retriever)
    shares = dict(zip([chunk.id for chunk in chunks], (0.2, 0.04, 0.06), strict=False))
    reading = METHOD.attribute(recall, Reading(((1,),), None, None, (((0, ()),),)), [shares])
    assert [hit.score for hit in reading.groups[0][0][1]] == [0.2, 0.06]


def test_a_model_without_latent_memory_is_refused_by_name():
    with pytest.raises(InputError, match="'tiny' has no latent memory"):
        Session("tiny", None, "mplus")


def test_folders_that_the_first_release_saved_are_loaded(tmp_path: Path):
    """`pool.safetensors` was written for the small model of another machine, so its fingerprint is written anew."""
    saved = Path(__file__).parent / "golden" / "sessions"
    with Session(LM, None, "memory3") as session:
        session.load(saved / "memory3")
        assert [chunk.text for chunk in session.bank.list()] == TEXTS
    copy = tmp_path / "mplus"
    shutil.copytree(saved / "mplus", copy)
    metadata, tensors = read_tensors(copy / POOL_FILE)
    with Session(LM, None, METHOD) as session:
        write_tensors(copy / POOL_FILE, tensors, {**metadata, "fingerprint": state(session).fingerprint})
        session.load(copy)
        assert [chunk.text for chunk in session.bank.list()] == TEXTS
        loaded = state(session)._history
        assert loaded is not None
        assert [len(write.ids) for write in loaded.writes] == [1] * len(TEXTS)
        assert {id for write in loaded.writes for id in write.ids} == {chunk.id for chunk in session.bank.list()}
        assert torch.equal(loaded.pool.row_LNC, tensors["row_LNC"])
        assert torch.equal(loaded.pool.long.blocks.parts()["long.row"], tensors["long.row"])
        assert pool(session) is not None
        assert state(session)._history is loaded, "the writes are those of the bank's texts: nothing is read again"


def test_a_saved_session_has_the_files_of_the_first_release(session, tmp_path: Path):
    session.save(tmp_path / "new")
    saved = Path(__file__).parent / "golden" / "sessions" / "mplus"
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(file.name for file in saved.iterdir())
    assert (tmp_path / "new" / "moment.json").read_bytes() == (saved / "moment.json").read_bytes()
    (new_metadata, new), (metadata, old) = (read_tensors(folder / POOL_FILE) for folder in (tmp_path / "new", saved))
    assert new_metadata.keys() == metadata.keys()
    assert json.loads(new_metadata["numbers"]).keys() == json.loads(metadata["numbers"]).keys()
    assert {name: (t.shape, t.dtype) for name, t in new.items()} == {
        name: (t.shape, t.dtype) for name, t in old.items()
    }


def test_without_attribution_nothing_is_measured_and_the_answer_is_the_same(session):
    reply = session.generate("Who owns a cat?", max_tokens=8, attribution=False)
    assert reply.text == ask(session)
    assert reply.recalled == []
    assert reply.usage.memory_tokens > 0
