"""Methods of other packages: found through entry points, with a state of their own, and refused one by one."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

import remanence as rm
from remanence import methods
from remanence.bank import Bank
from remanence.errors import BankMismatch, InputError
from remanence.session import Session

TEXTS = ("Ada owns a cat.", "The door code is 4417.", "Dee sells green tea.")


@pytest.fixture(scope="module")
def lm() -> rm.LM:
    return rm.load("tiny")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a distribution with one module and its entry points on the path, as an installer does."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install(name: str, source: str, **points: str) -> None:
        (site / f"{name}.py").write_text(source)
        about = site / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(
            "[remanence.methods]\n" + "".join(f"{point} = {name}:{cls}\n" for point, cls in points.items())
        )
        (about / "RECORD").write_text(f"{name}.py,,\n")
        monkeypatch.delitem(sys.modules, name, raising=False)

    return install


@pytest.fixture
def last_words(install) -> None:
    install("last_words_package", (Path(__file__).parent / "last_words.py").read_text(), last_words="LastWords")


def prompt_of(session: Session, **options) -> str:
    """What the model is given, as the method laid it out."""
    _, generation = next(iter(session._generations(["Who?"], options)))
    return session.lm.decode(generation.reading.prompts[0])


def test_a_method_of_another_package_is_found_by_name_and_preset(lm: rm.LM, last_words: None):
    assert methods.load("last_words", lm).describe() == {"method": "last_words", "num_texts": 2}
    assert methods.load("last_words:one", lm).describe()["num_texts"] == 1
    assert methods.known()["last_words"].__module__ == "last_words_package"
    with pytest.raises(InputError, match=r"did you mean 'last_words'\? there are: .*last_words.*memory3"):
        methods.load("last_word", lm)


def test_its_state_follows_the_bank(lm: rm.LM, last_words: None):
    with Session(lm, None, "last_words") as session:
        ids = [session.write(text).ids[0] for text in TEXTS]
        assert session.read_ids == set(ids)
        prompt = prompt_of(session)
        assert TEXTS[1] in prompt
        assert TEXTS[2] in prompt
        assert TEXTS[0] not in prompt
        assert TEXTS[2] not in prompt_of(session, without=ids[2])
        assert session.generate("Who?", max_tokens=2).usage.prompt_tokens == len(lm.encode(prompt)) + 2 * len(lm.bos)
        before = session.snapshot()
        session.write("Nobody came.")
        assert "Nobody came." in prompt_of(session)
        session.rollback(before)
        assert prompt_of(session) == prompt
        session.forget(ids[2])
        assert session.read_ids == set(ids[:2])
        assert TEXTS[2] not in prompt_of(session)
        assert session.bank.missing_vectors("any", ids[:2]) == ids[:2], "it searches nothing"


def test_its_state_is_kept_beside_the_bank_saved_loaded_and_forked(lm: rm.LM, last_words: None, tmp_path: Path):
    with Session(lm, tmp_path / "bank", "last_words") as session:
        for text in TEXTS:
            session.write(text)
        session.save(tmp_path / "saved")
        prompt = prompt_of(session)
        with session.fork() as fork:
            assert prompt_of(fork) == prompt
    with Session(lm, tmp_path / "bank", "last_words") as again:
        assert prompt_of(again) == prompt
        assert again._state is not None
        assert vars(again._state)["num_read"] == 0, "nothing is read again"
    with Bank.open(tmp_path / "bank") as bank:
        assert bank.verify().ok
    with Session(lm, None, "last_words") as other:
        other.load(tmp_path / "saved")
        assert prompt_of(other) == prompt
    with Session(lm, None, "last_words", seed=1) as other, pytest.raises(BankMismatch, match="of another model"):
        other.load(tmp_path / "saved")


def test_a_broken_plugin_costs_one_line_that_names_it_and_no_other_method(lm: rm.LM, install, last_words: None):
    good = (Path(__file__).parent / "last_words.py").read_text()
    install("broken_at_import", "import nowhere_to_be_found\n", broken="Anything")
    install("no_such_class", "", absent="Anything")
    install("no_method", "class Thing: name = 'thing'\n", thing="Thing")
    install("half_a_method", "from remanence.methods import Method\nclass Half(Method): name = 'half'\n", half="Half")
    install("two_names", good, second="LastWords")
    install("takes_a_name", good.replace('"last_words"', '"memory3"'), memory3="LastWords")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = methods.known()
    assert found["memory3"].__module__ == "remanence.methods.memory3.method"
    assert {"memory3", "mplus", "retrieved_text", "full_context", "last_words"} == set(found)
    lines = {str(warning.message) for warning in caught}
    expected = {
        "method 'broken' of broken_at_import": "No module named 'nowhere_to_be_found'",
        "method 'absent' of no_such_class": "no attribute 'Anything'",
        "method 'thing' of no_method": "no method",
        "method 'half' of half_a_method": "no method",
        "method 'second' of two_names": "calls itself 'last_words'",
        "method 'memory3' of takes_a_name": "there is a method 'memory3' already",
    }
    assert len(lines) == len(expected)
    for name, reason in expected.items():
        (line,) = [line for line in lines if line.startswith(name)]
        assert reason in line
        assert "\n" not in line
        assert " -> " in line
    with pytest.raises(InputError, match=r"method 'broken' of broken_at_import .*nowhere_to_be_found"):
        methods.load("broken", lm)
    assert methods.load("last_words", lm).name == "last_words"


def test_a_method_of_this_package_is_loaded_without_importing_others(lm: rm.LM, install):
    install("costly", "raise SystemExit('imported')\n", costly="Anything")
    for name in ("memory3", "retrieved_text", "full_context"):
        assert methods.load(name, lm).name == name
    assert "costly" not in sys.modules
