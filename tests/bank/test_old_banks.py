"""A bank that version 0.1.0 wrote (`bank-format-3.zip`) opens, answers, forgets, compacts and verifies."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from remanence.bank import Bank

from .helpers import FINGERPRINT, add_one, make_memory
from .traces import traces

TEXTS = ["Ada has a red kettle", "The old code is 4417", "Bob likes tea", "The new code is 5000"]


@pytest.fixture
def old_bank(tmp_path: Path) -> Path:
    with zipfile.ZipFile(Path(__file__).with_name("bank-format-3.zip")) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "bank-format-3"


def test_it_is_read(old_bank: Path) -> None:
    with Bank.open(old_bank) as bank:
        chunks = bank.list(include_superseded=True)
        assert [chunk.text for chunk in chunks] == TEXTS
        ids = [chunk.id for chunk in chunks]
        assert [chunk.id for chunk in bank.list()] == [ids[0], *ids[2:]], "the old code is superseded"
        assert (chunks[0].source, dict(chunks[0].metadata)) == ("ada.txt", {"lang": "en"})
        assert [id for id, _ in bank.search_text("kettle")] == [ids[0]]
        assert bank.search_vector(np.eye(8)[2], "e", 1)[0][0] == ids[2]
        for seed, memory in enumerate(bank.load(FINGERPRINT, ids[:3])):
            assert memory.key_LGND.equal(make_memory(seed).key_LGND)
        assert bank.fingerprints() == {FINGERPRINT: {"model": "tiny", "method": "none"}}
        assert {id: count for id, (count, _) in bank.usage().items()} == {ids[0]: 1, ids[1]: 1}
        assert [answer.question for answer in bank.answers(9)] == ["Who has a kettle?", "What is the code?"]
        assert bank.verify().ok


def test_it_is_changed(old_bank: Path) -> None:
    with Bank.open(old_bank) as bank:
        ada, old, *_ = bank.list(include_superseded=True)
        bank.put_memories(FINGERPRINT, [ada.id], [make_memory(9)])
        new = add_one(bank, "Cleo has a boat")
        receipt = bank.forget([old.id])
        assert (receipt.exact, receipt.num_memories, receipt.num_answers) == (True, 1, 1)
        assert bank.compact().bytes_gone
        assert traces(old_bank, old.text, old.id, "What is the code?") == []
        assert [chunk.text for chunk in bank.list()] == [TEXTS[0], *TEXTS[2:], "Cleo has a boat"]
        assert bank.search_text("boat")[0][0] == new
        assert bank.load(FINGERPRINT, [ada.id])[0].key_LGND.equal(make_memory(9).key_LGND)
        assert bank.verify().ok
