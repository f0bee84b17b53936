"""Forgotten is forgotten, by whichever door: command line, Python, another process; `compact` leaves nothing."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from remanence.bank import Bank, NewChunk
from remanence.bank.answers import Answer, Recalled
from remanence.cli import run
from remanence.session import Session

from .helpers import FINGERPRINT, Clock, draft, make_memory
from .traces import in_bytes, traces

SECRET = "Zorblax Quenneville keeps the vault code 7731904 under the Brixworth stairs."
SOURCE, AUTHOR = "zorblax-memo.txt", "Wilhelmina Thrax"
QUESTION = "Which vault code does Zorblax Quenneville keep?"
REST = {
    "gate.txt": "The code of the garden gate is 4417.",
    "ferry.txt": "The ferry Marigold leaves Quillhaven at 8:15.",
}
OTHER_QUESTION = "When does the ferry Marigold leave Quillhaven?"
NEEDLES = (SECRET, SOURCE, AUTHOR, QUESTION, "7731904", "Brixworth")


def command(folder: Path, *arguments: str) -> None:
    assert run([*arguments, "--bank", str(folder)]) == 0


def ask(folder: Path, question: str, *options: str) -> None:
    command(folder, "ask", question, "--model", "tiny", "--max-tokens", "3", "--json", *options)


def open_session(folder: Path) -> Session:
    return Session("tiny", folder)


def write_secret(folder: Path, **fields: object) -> str:
    with open_session(folder) as session:
        return session.write(SECRET, SOURCE, metadata={"author": AUTHOR}, **fields).ids[0]


def ask_all(folder: Path) -> None:
    """What recalls the secret, what does not, and a question that is the secret itself, without memory."""
    ask(folder, QUESTION)
    ask(folder, OTHER_QUESTION)
    ask(folder, SECRET, "--no-memory")


@pytest.fixture(scope="module")
def without_secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rest") / "bank"
    with open_session(folder) as session:
        for source, text in REST.items():
            session.write(text, source)
    return folder


@pytest.fixture(scope="module")
def with_secret(without_secret: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = Path(shutil.copytree(without_secret, tmp_path_factory.mktemp("asked") / "bank"))
    id = write_secret(folder)
    ask_all(folder)
    places = in_bytes(folder, NEEDLES)
    assert {"answers.jsonl"} < {file for file, _ in places}, "the search must be able to find what is there"
    assert {string for _, string in traces(folder, *NEEDLES)} == set(NEEDLES)
    return folder, id


@pytest.fixture
def folder(with_secret: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(with_secret[0], tmp_path / "bank"))


@pytest.fixture
def id(with_secret: tuple[Path, str]) -> str:
    return with_secret[1]


def by_bank(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bank.open(folder) as bank:
        receipt = bank.forget([id])
        assert receipt.exact
        assert not receipt.bytes_gone
        assert receipt.num_answers == 2


def by_session(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_session(folder) as session:
        assert session.forget(id).exact


def by_id(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command(folder, "bank", "forget", id, "--yes")


def by_source(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command(folder, "bank", "forget", "--source", SOURCE, "--yes")


def by_chat(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n/forget {id}\n"))
    command(folder, "chat", "--model", "tiny", "--max-tokens", "2")


def by_another_process(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bank.open(folder) as other:  # which has read it, and does not know
        assert other.get([id])[0].text == SECRET
        code = "import sys; from remanence.bank import Bank; Bank.open(sys.argv[1]).forget([sys.argv[2]])"
        subprocess.run([sys.executable, "-c", code, str(folder), id], check=True, timeout=120)
        assert other.texts([id]) == {}


def by_command_of_another_process(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [sys.executable, "-m", "remanence", "bank", "forget", id, "--yes", "--bank", str(folder)]
    subprocess.run(arguments, check=True, timeout=120, capture_output=True)


def by_reset(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_session(folder) as session:
        session.reset()


def by_export_and_import(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    export = folder.parent / "export.jsonl"
    command(folder, "bank", "export", str(export))
    command(folder, "bank", "forget", id, "--yes")
    command(folder, "bank", "import", str(export))
    ask(folder, QUESTION)
    assert traces(folder, QUESTION)
    with Bank.open(folder) as bank:
        bank.forget([id])


def by_superseding(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_session(folder) as session:
        session.write("The vault is open to everybody now.", supersedes=id)
        assert session.bank.get([id]), "superseded is not forgotten"
        session.bank.forget([id])


def by_a_kill_before_the_answers_go(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk went, its answers are still there: what a killed process, or an older version, leaves."""
    left = (folder / "answers.jsonl").read_bytes()
    with Bank.open(folder) as bank:
        bank.forget([id])
    (folder / "answers.jsonl").write_bytes(left)
    (folder / ".answers.jsonl.0123.tmp").write_bytes(left)
    (folder / ".meta.json.0123.tmp").write_bytes(left)


DOORS = [
    by_bank,
    by_session,
    by_id,
    by_source,
    by_chat,
    by_another_process,
    by_command_of_another_process,
    by_reset,
    by_export_and_import,
    by_superseding,
    by_a_kill_before_the_answers_go,
]


def compact_by_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    command(folder, "bank", "compact", "--json")
    assert json.loads(capsys.readouterr().out)["bytes_gone"]


def compact_by_bank(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Bank.open(folder) as bank:
        receipt = bank.compact()
        assert (receipt.bytes_gone, receipt.left) == (True, ())


@pytest.mark.parametrize("compact", [compact_by_command, compact_by_bank])
@pytest.mark.parametrize("door", DOORS)
def test_nothing_is_left_in_any_file_by_whichever_door(
    folder: Path,
    id: str,
    door: Callable[[Path, str, pytest.MonkeyPatch], None],
    compact: Callable[[Path, pytest.CaptureFixture[str]], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    door(folder, id, monkeypatch)
    if door is not by_a_kill_before_the_answers_go:
        assert [place for place in in_bytes(folder, NEEDLES) if "answers" in place[0]] == []
    compact(folder, capsys)
    assert traces(folder, *NEEDLES, id) == []
    with Bank.open(folder) as bank:
        assert bank.verify().ok
        questions = [answer.question for answer in bank.answers(9)]
        assert questions == ([] if door is by_reset else [OTHER_QUESTION])
        assert {chunk.text for chunk in bank.list()} >= (set() if door is by_reset else set(REST.values()))


def test_by_rollback(without_secret: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(without_secret, tmp_path / "bank"))
    with open_session(folder) as session:
        before = session.snapshot()
        id = write_secret(folder)
        ask_all(folder)
        assert session.rollback(before).exact
        assert session.bank.compact().bytes_gone
    assert traces(folder, *NEEDLES, id) == []


@pytest.mark.parametrize("expire", ["expire", "compact"])
def test_by_expiry(without_secret: Path, tmp_path: Path, expire: str) -> None:
    folder = Path(shutil.copytree(without_secret, tmp_path / "bank"))
    id = write_secret(folder, expires=time.time() + 3600)
    ask_all(folder)
    with Bank.open(folder, clock=lambda: time.time() + 7200) as bank:
        assert [answer.question for answer in bank.answers(9)] == [SECRET, OTHER_QUESTION]
        getattr(bank, expire)()
        assert [place for place in in_bytes(folder, NEEDLES) if "answers" in place[0]] == []
        assert bank.compact().bytes_gone
    assert traces(folder, *NEEDLES, id) == []


def test_a_text_of_two_namespaces_is_gone_when_both_have_forgotten_it(folder: Path, id: str) -> None:
    with Session("tiny", folder, namespace="other") as session:
        other_id = session.write(SECRET, SOURCE, metadata={"author": AUTHOR}).ids[0]
    ask(folder, QUESTION, "--namespace", "other")
    with Bank.open(folder) as bank, Bank.open(folder, namespace="other") as other:
        bank.forget([id])
        assert bank.compact().bytes_gone
        assert traces(folder, id) == []
        assert other.get([other_id])[0].metadata == {"author": AUTHOR}
        assert [answer.question for answer in other.answers(9)] == [QUESTION]
        other.forget([other_id])
        assert bank.compact().bytes_gone, "it purges the whole bank"
    assert traces(folder, *NEEDLES, id, other_id) == []


def test_a_long_chunk_that_a_migration_splits(without_secret: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(without_secret, tmp_path / "bank"))
    text = f"{SECRET} " + " ".join(
        f"Then Brixworth wrote line number {number} of the long report." for number in range(40)
    )
    with Bank.open(folder) as bank:
        [(id, _)] = bank.add([NewChunk(text, 500, SOURCE, metadata={"author": AUTHOR})])
        bank.note_answer(
            Answer(1, "default", "tiny", "memory3", 0, QUESTION, "7731904", {}, (Recalled(id, 0.5, None),))
        )
    with open_session(folder) as session:
        session.migrate()
        assert id not in {chunk.id for chunk in session.bank.list()}
        assert session.bank.answers(9) == []
        assert session.bank.compact().bytes_gone, "what a piece still has is not removed"
        assert traces(folder, id, QUESTION) == []
        session.forget(*(chunk.id for chunk in session.bank.list(source=SOURCE)))
        assert session.bank.compact().bytes_gone
    assert traces(folder, *NEEDLES, id) == []


def test_what_another_chunk_still_says_stays(folder: Path, id: str) -> None:
    with Bank.open(folder) as bank:
        [(other, _)] = bank.add([NewChunk(f"As was said: {SECRET}", 20, SOURCE, metadata={"author": AUTHOR})])
        bank.note_answer(Answer(9, "default", "tiny", "memory3", 0, SECRET, "yes", {}, (Recalled(other, 0.5, None),)))
        bank.forget([id])
        assert [answer.question for answer in bank.answers(9)] == [SECRET, SECRET, OTHER_QUESTION]
        assert bank.compact().bytes_gone
        assert bank.get([other])[0].source == SOURCE
    assert traces(folder, id) == []


def test_a_file_that_still_holds_it_is_named(folder: Path, id: str) -> None:
    """The proof is a search, not a promise: bytes that nobody expected are found."""
    with Bank.open(folder) as bank:
        bank.forget([id])
        (folder / "notes.txt").write_text(f"remember: {SECRET}")
        receipt = bank.compact()
        assert (receipt.bytes_gone, receipt.left) == (False, ("notes.txt",))
    assert not in_bytes(folder / "chunks.lance", NEEDLES)


def test_an_old_file_that_could_not_be_removed_is_named(folder: Path, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where another program holds it open and the system does not let it go."""
    from remanence.bank import compaction

    [*_, old] = sorted((folder / "chunks.lance" / "data").iterdir())
    content = old.read_bytes()
    compact_tables = compaction.compact_tables

    def leave_one(store: object) -> None:
        compact_tables(store)
        old.write_bytes(content)

    monkeypatch.setattr(compaction, "compact_tables", leave_one)
    with Bank.open(folder) as bank:
        bank.forget([id])
        receipt = bank.compact()
    assert not receipt.bytes_gone
    assert f"chunks.lance/data/{old.name}" in receipt.left


def test_a_table_that_was_not_written_anew_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lance's own optimize keeps the bytes of a removed row, compressed, where no search of bytes need see them."""
    monkeypatch.setattr("remanence.bank.compaction.rewrite", lambda store, name: None)
    with Bank.open(tmp_path / "bank") as bank:
        ids = [id for id, _ in bank.add([draft(f"{SECRET} Part {number}.") for number in range(60)])]
        bank.forget(ids[:1])
        receipt = bank.compact()
    assert not receipt.bytes_gone
    assert any(name.startswith("chunks.lance/data/") for name in receipt.left)


class Orders(RuleBasedStateMachine):
    """Two handles of one bank write, answer, forget, expire and compact in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder, self.clock = Path(tempfile.mkdtemp()) / "bank", Clock()
        self.banks = [Bank.open(self.folder, clock=self.clock) for _ in range(2)]
        self.banks[0].add([draft("something that stays")])
        self.live: dict[int, tuple[str, float | None]] = {}
        self.removed: set[int] = set()

    def words(self, number: int) -> tuple[str, ...]:
        """Text, source, metadata, question and answer that only this chunk has."""
        return tuple(f"{kind}quux{number}zorblax" for kind in ("text", "source", "author", "question", "answer"))

    def pass_away(self) -> None:
        for number, (_, expires) in list(self.live.items()):
            if expires is not None and expires <= self.clock.now:
                self.removed.add(number)
                del self.live[number]

    @rule(who=st.integers(0, 1), number=st.integers(0, 5), life=st.sampled_from([None, 5, 20]))
    def add(self, who: int, number: int, life: int | None) -> None:
        if number in self.live:
            return
        text, source, author, *_ = self.words(number)
        expires = None if life is None else self.clock.now + life
        [(id, _)] = self.banks[who].add([draft(text, source=source, metadata={"author": author}, expires=expires)])
        self.banks[who].put_memories(FINGERPRINT, [id], [make_memory(number)])
        self.banks[who].put_vectors("e", [id], np.eye(8)[[number]])
        self.live[number] = (id, expires)
        self.removed.discard(number)

    @precondition(lambda self: self.live)
    @rule(who=st.integers(0, 1), pick=st.integers(0, 5), recalls=st.booleans())
    def answer(self, who: int, pick: int, recalls: bool) -> None:
        number = sorted(self.live)[pick % len(self.live)]
        text, _, _, question, answer = self.words(number)
        recalled = (Recalled(self.live[number][0], 0.5, None),) if recalls else ()
        asked = question if recalls else text  # what recalls nothing may still quote it
        self.banks[who].note_answer(
            Answer(1, "default", "m", "n", 0, asked, answer if recalls else "", {"max_tokens": 1}, recalled)
        )

    @precondition(lambda self: self.live)
    @rule(who=st.integers(0, 1), pick=st.integers(0, 5))
    def forget(self, who: int, pick: int) -> None:
        number = sorted(self.live)[pick % len(self.live)]
        assert self.banks[who].forget([self.live.pop(number)[0]]).exact
        self.removed.add(number)

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds
        self.pass_away()

    @rule(who=st.integers(0, 1))
    def index(self, who: int) -> None:
        self.banks[who].index()

    @rule(who=st.integers(0, 1))
    def compact(self, who: int) -> None:
        receipt = self.banks[who].compact()
        assert receipt.bytes_gone, receipt.left
        gone = [word for number in self.removed for word in self.words(number)]
        assert in_bytes(self.folder, gone) == []
        assert {chunk.id for chunk in self.banks[1 - who].list()} >= {id for id, _ in self.live.values()}

    def teardown(self) -> None:
        self.pass_away()
        self.compact(0)
        gone = [word for number in self.removed for word in self.words(number)]
        assert traces(self.folder, *gone) == []
        for bank in self.banks:
            bank.close()
        shutil.rmtree(self.folder.parent)


Orders.TestCase.settings = settings(
    max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
test_orders = Orders.TestCase
