"""Random lives of a bank, compared step by step with a dict (`tests/reference/bank.py`)."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from remanence.bank import Bank
from remanence.errors import InputError, UnknownChunk

from ..reference.bank import ReferenceBank
from .helpers import FINGERPRINT, Clock, draft, make_memory

WORDS = ("ada", "bob", "tea", "code", "harbour")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
NAMESPACES = ("default", "it's")
WHO = st.sampled_from(NAMESPACES)
LIFE_SECONDS = st.one_of(st.none(), st.integers(1, 30))


@pytest.fixture(autouse=True)
def soon_in_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look-up of a version reads the disk, all later ones the rows in RAM."""
    monkeypatch.setattr("remanence.bank.tiers.READS_BEFORE", 2)


class Lives(RuleBasedStateMachine):
    """Two namespaces of one bank on disk; each must behave as if it were alone."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.models = {name: ReferenceBank(name) for name in NAMESPACES}
        self.pass_time(0)
        self.banks = {name: self.open(name) for name in NAMESPACES}

    def open(self, name: str) -> Bank:
        return Bank.open(self.folder / "bank", namespace=name, clock=self.clock, ram_bytes=2_000)

    def pass_time(self, seconds: int) -> None:
        self.clock.now += seconds
        for model in self.models.values():
            model.pass_time(self.clock.now)

    def pick(self, who: str, number: int) -> str | None:
        ids = sorted(self.models[who].entries)
        return ids[number % len(ids)] if ids else None

    @rule(who=WHO, texts=st.lists(TEXTS, max_size=3), life=LIFE_SECONDS)
    def add(self, who: str, texts: list[str], life: int | None) -> None:
        expires = None if life is None else self.clock.now + life
        added = self.banks[who].add([draft(text, expires=expires) for text in texts])
        assert added == [self.models[who].add(text, math.inf if expires is None else expires) for text in texts]

    @rule(who=WHO, text=TEXTS, number=st.integers(0, 99), life=LIFE_SECONDS)
    def supersede(self, who: str, text: str, number: int, life: int | None) -> None:
        target, expires = self.pick(who, number), None if life is None else self.clock.now + life
        bank, model = self.banks[who], self.models[who]
        if target is None or target == model.id(text):
            with pytest.raises((UnknownChunk, InputError)):
                bank.add([draft(text, expires=expires, supersedes=target or "0" * 16)])
            return
        [added] = bank.add([draft(text, expires=expires, supersedes=target)])
        assert added == model.add(text, math.inf if expires is None else expires, target)

    @rule(who=WHO, numbers=st.lists(st.integers(0, 99), min_size=1, max_size=3))
    def forget(self, who: str, numbers: list[int]) -> None:
        ids = [id for number in numbers if (id := self.pick(who, number))]
        if ids:
            assert set(self.banks[who].forget(ids).ids) == set(ids)
            self.models[who].forget(ids)

    @rule(who=WHO, number=st.integers(0, 99), other=st.integers(0, 99))
    def forget_what_is_not_mine(self, who: str, number: int, other: int) -> None:
        stranger = NAMESPACES[1 - NAMESPACES.index(who)]
        theirs, mine = self.pick(stranger, number), self.pick(who, other)
        if theirs:
            with pytest.raises(UnknownChunk):
                self.banks[who].forget([*([mine] if mine else []), theirs])

    @rule(who=WHO, number=st.integers(0, 99), seed=st.integers(0, 5))
    def encode(self, who: str, number: int, seed: int) -> None:
        if id := self.pick(who, number):
            vector = np.zeros(8)
            vector[seed] = 1
            self.banks[who].put_memories(FINGERPRINT, [id], [make_memory(seed)])
            self.banks[who].put_vectors("e", [id], vector[None])
            self.models[who].entries[id].memory = seed

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds: int) -> None:
        self.pass_time(seconds)

    @rule(who=WHO)
    def reopen(self, who: str) -> None:
        self.banks[who].close()
        self.banks[who] = self.open(who)

    @rule(who=WHO, how=st.sampled_from(["compact", "expire", "index", "verify"]))
    def care(self, who: str, how: str) -> None:
        report = getattr(self.banks[who], how)()
        assert how != "verify" or report.ok, report.problems

    @invariant()
    def agree(self) -> None:
        for who, model in self.models.items():
            bank, visible = self.banks[who], model.visible()
            assert {chunk.id for chunk in bank.list()} == set(visible)
            assert {chunk.id for chunk in bank.list(include_superseded=True)} == set(model.entries)
            assert len(bank) == len(visible)

    @rule(who=WHO, word=st.sampled_from(WORDS), seed=st.integers(0, 5))
    def search(self, who: str, word: str, seed: int) -> None:
        bank, model = self.banks[who], self.models[who]
        assert {id for id, _ in bank.search_text(word, 100)} == model.find(word)
        query = np.full(8, 0.1)
        query[seed] = 1
        encoded = {id for id, entry in model.visible().items() if entry.memory is not None}
        hits = bank.search_vector(query, "e", 100)
        assert {id for id, _ in hits} == encoded
        best = {id for id in encoded if model.entries[id].memory == seed}
        assert {id for id, _ in hits[: len(best)]} == best

    @rule(who=WHO)
    def read(self, who: str) -> None:
        bank, model = self.banks[who], self.models[who]
        ids = list(model.entries)
        assert [chunk.text for chunk in bank.get(ids)] == [model.entries[id].text for id in ids]
        assert all(bank.has([entry.text for entry in model.entries.values()]))
        for id, memory in zip(ids, bank.load(FINGERPRINT, ids), strict=True):
            seed = model.entries[id].memory
            assert (memory is None) == (seed is None)
            assert seed is None or memory.key_LGND.equal(make_memory(seed).key_LGND)

    def teardown(self) -> None:
        for bank in self.banks.values():
            bank.close()
        shutil.rmtree(self.folder)


Lives.TestCase.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
test_lives = Lives.TestCase
