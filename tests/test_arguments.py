"""Values that people pass to the Python API: each gives an answer, or one line of InputError."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import remanence as rm
from remanence import arguments
from remanence.bank import Bank
from remanence.errors import InputError, RemanenceError, UnknownChunk
from remanence.generation import Options
from remanence.text.formats import Document

NAN, INF = float("nan"), float("inf")
FACT = "Ada's locker code is 4417."
QUESTION = "What is Ada's locker code?"
NOW = 1_900_000_000.0


@pytest.fixture(scope="module")
def lm() -> rm.LM:
    return rm.load("tiny")


@pytest.fixture
def session(lm: rm.LM) -> Iterator[rm.Session]:
    with rm.Session(lm, Bank.open(None, clock=lambda: NOW)) as session:
        session.write(FACT)
        yield session


def refused(call: Any, words: str | None = None) -> None:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert is_one_line(caught.value)


def is_one_line(error: Exception) -> bool:
    return "\n" not in str(error) and " -> " in str(error)


def result_or_error(call: Callable[[], Any]) -> Any:
    """What `call` returns, or the RemanenceError that it raises; everything else is let through."""
    try:
        return call()
    except RemanenceError as error:
        return error


BAD_OPTIONS = [
    *[("max_tokens", value) for value in (0, -1, 1.5, NAN, INF, True, "8", b"8", [8], np.float32(8), np.bool_(True))],
    *[("temperature", value) for value in (-0.1, NAN, INF, -INF, True, "0.5", [0.5], 10**400, np.float32("nan"), 1j)],
    *[("top_p", value) for value in (0, -1, 1.1, NAN, INF, False, "1", np.bool_(True), Decimal("NaN"))],
    *[("seed", value) for value in (2**64, -(2**63) - 1, 10**40, 1.0, NAN, "1", True, [1])],
    *[
        ("stop", value)
        for value in (3, NAN, np.array(3), torch.tensor(1), b"x", [b"x"], [None], ["x", 3], [""], "", True)
    ],
    *[("without", value) for value in (3, b"x", [None], [7], True)],
    *[("recall", value) for value in (None.__class__, 0, 1, "false", [True], np.array([True]))],
    *[("attribution", value) for value in (0, "no", b"")],
]


@pytest.mark.parametrize(("name", "value"), BAD_OPTIONS)
def test_an_option_that_cannot_be_is_named(session: rm.Session, name: str, value: Any):
    refused(lambda: session.generate(QUESTION, **{name: value}), name if name != "stop" else "stop")
    refused(lambda: session.generate_batch([QUESTION], **{name: value}))
    refused(lambda: session.stream(QUESTION, **{name: value}))


GOOD_OPTIONS: list[dict[str, Any]] = [
    {"max_tokens": np.int64(2)},
    {"max_tokens": torch.tensor(2)},
    {"temperature": np.float32(0.7), "top_p": np.float64(0.5), "seed": np.uint8(3)},
    {"temperature": Decimal("0.7"), "top_p": Fraction(1, 2)},
    {"temperature": 1, "top_p": 1},
    {"temperature": 1e-320},
    {"temperature": 1e-45, "top_p": 1e-300},
    {"temperature": 1e308, "top_p": 1e-300},
    {"temperature": None, "top_p": None, "seed": None, "stop": None, "without": None},
    {"seed": 2**64 - 1, "temperature": 1.0},
    {"seed": -(2**63), "temperature": 1.0},
    {"stop": "\n"},
    {"stop": ("x", np.str_("y"))},
    {"stop": {"x"}},
    {"stop": (word for word in ["x"])},
    {"stop": []},
    {"recall": np.bool_(False)},
]


@pytest.mark.parametrize("options", GOOD_OPTIONS)
def test_an_option_of_another_type_that_means_the_same_is_taken(session: rm.Session, options: dict[str, Any]):
    reply = session.generate(QUESTION, **{"max_tokens": 2, **options})
    assert reply.usage.completion_tokens == 2


def test_none_is_the_default_and_what_is_as_good_as_zero_is_greedy(session: rm.Session):
    assert Options(max_tokens=None, temperature=None, top_p=None, stop=None) == Options()  # type: ignore[arg-type]
    greedy = session.generate(QUESTION, max_tokens=8).text
    assert session.generate(QUESTION, max_tokens=8, temperature=1e-30).text == greedy
    assert session.generate(QUESTION, max_tokens=8, temperature=1.0, top_p=1e-300).text == greedy


def test_an_option_that_does_not_exist_is_answered_with_the_nearest(session: rm.Session):
    refused(lambda: session.generate_batch([QUESTION], max_token=3), "did you mean 'max_tokens'")
    refused(lambda: session.stream(QUESTION, frequency_penalty=0.5), "frequency_penalty")


@pytest.mark.parametrize(
    "batch",
    [
        QUESTION,
        QUESTION.encode(),
        None,
        3,
        {"role": "user", "content": "x"},
        [3],
        [None],
        [{"role": "user"}],
        np.array("x"),
    ],
)
def test_a_batch_that_is_none_is_refused(session: rm.Session, batch: Any):
    refused(lambda: session.generate_batch(batch))


def test_a_batch_may_be_any_iterable_and_mixes_shapes(session: rm.Session):
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    replies = session.generate_batch((prompt for prompt in (QUESTION, parts, tuple(parts))), max_tokens=4)
    assert len({reply.text for reply in replies}) == 1
    assert [len(reply.recalled) for reply in replies] == [1, 1, 1]
    assert session.generate_batch(iter(())) == []
    assert "".join(session.stream(parts, max_tokens=4)).strip() == replies[0].text


# -- writing -------------------------------------------------------------------------------------------------------

BAD_WRITES: list[tuple[dict[str, Any], str]] = [
    *[({"text": value}, "text is") for value in (None, 3, b"Ada", ["Ada"], Path("a.txt"), NAN, {"text": "Ada"})],
    *[({"source": value}, "source is") for value in (3, b"a.txt", ["a.txt"], NAN)],
    *[({"expires": value}, "expires is") for value in (NAN, INF, -INF, -1, 0, True, "2030-01-01", [1], b"", 1j)],
    ({"expires": NOW}, "in the past"),
    ({"expires": NOW * 1000}, "milliseconds"),
    ({"expires": 10**400}, "expires is"),
    ({"expires": dt.datetime(1999, 1, 1)}, "in the past"),
    ({"expires": dt.datetime.min}, "expires is"),
    ({"expires": dt.timedelta(0)}, "in the past"),
    ({"expires": dt.timedelta(seconds=-1)}, "in the past"),
    ({"expires": dt.timedelta.max}, "after the year 9999"),
    ({"expires": dt.date(1999, 1, 1)}, "in the past"),
    *[({"supersedes": value}, "supersedes is") for value in (3, b"x", ["x"], True)],
    *[({"metadata": value}, "metadata is") for value in (3, "page", [("page", "4")])],
    *[({"metadata": value}, "metadata") for value in ({"page": 4}, {4: "page"}, {"at": NAN}, {"x": "\ud800"})],
    *[({"warm": value}, "warm is") for value in (None, 1, "yes")],
]


@pytest.mark.parametrize(("given", "words"), BAD_WRITES)
def test_a_write_that_cannot_be_is_named_and_nothing_is_stored(session: rm.Session, given: dict[str, Any], words: str):
    refused(lambda: session.write(**{"text": "Bruno keeps goats.", **given}), words)
    assert len(session.bank) == 1


LOCAL = dt.datetime(2035, 1, 31, 12).timestamp()


@pytest.mark.parametrize(
    ("expires", "seconds"),
    [
        (None, None),
        (NOW + 60, NOW + 60),
        (np.float64(NOW + 60), NOW + 60),
        (np.int64(NOW + 60), NOW + 60),
        (Decimal(int(NOW) + 60), NOW + 60),
        (dt.timedelta(days=2), NOW + 2 * 86_400),
        (dt.datetime(2035, 1, 31, 12, tzinfo=dt.UTC), 2_053_857_600.0),
        (dt.datetime(2035, 1, 31, 12, tzinfo=dt.timezone(dt.timedelta(hours=5))), 2_053_839_600.0),
        (dt.datetime(2035, 1, 31, 12), LOCAL),
        (dt.date(2035, 1, 31), LOCAL - 43_200),
    ],
)
def test_a_time_in_any_type_is_seconds_since_1970(session: rm.Session, expires: Any, seconds: float | None):
    (id,) = session.write("Bruno keeps goats.", Path("notes") / "goats.txt", expires=expires).ids
    (chunk,) = session.bank.get([id])
    assert chunk.expires == seconds
    assert chunk.source == str(Path("notes") / "goats.txt")


def test_documents_of_any_shape_are_stored_or_refused(session: rm.Session):
    given: Any = (
        document
        for document in (
            Document("Bruno keeps goats.", "a.txt"),
            SimpleNamespace(text="Cy sings.", source=Path("b.txt")),
            SimpleNamespace(text="Dee sells tea.", source=None, metadata=None),
        )
    )
    assert session.write_documents(given, warm=False).num_documents == 3
    assert [chunk.source for chunk in session.bank.list()][1:] == ["a.txt", "b.txt", ""]
    for wrong in ("text", b"text", None, 3, Document("x", "y"), {"text": "x"}, ["text"], [{"text": "x"}], [None]):
        refused(lambda wrong=wrong: session.write_documents(wrong))  # type: ignore[misc]
    refused(lambda: session.write_documents([SimpleNamespace(text=b"x", source="")]), "the text of document 1")
    refused(lambda: session.write_documents([SimpleNamespace(text="x", source="", metadata=[1])]), "metadata is")
    assert session.write_documents([]).num_chunks == 0
    assert len(session.bank) == 4


# -- forgetting, folders, opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [(None,), (3,), (["x"],), (b"x",), (("x",),), (True,)])
def test_an_id_that_is_none_is_refused(session: rm.Session, ids: tuple[Any, ...]):
    refused(lambda: session.forget(*ids), r"an id is .* -> (give ids one by one|decode)")
    assert session.forget().ids == ()
    with pytest.raises(UnknownChunk):
        session.forget("x")
    with pytest.raises(UnknownChunk):
        session.generate(QUESTION, without="x")
    assert len(session.bank) == 1


@pytest.mark.parametrize("folder", [None, 3, True, b"kept", "", ["kept"], "a\0b", NAN])
def test_a_folder_that_is_none_is_refused(lm: rm.LM, session: rm.Session, folder: Any):
    refused(lambda: session.save(folder), "folder is")
    refused(lambda: session.load(folder), "folder is")
    if folder is not None:
        refused(lambda: rm.Session(lm, bank=folder), "bank is")
        refused(lambda: session.fork(folder), "bank is")
        refused(lambda: Bank.open(folder), "bank is")


def test_folders_may_be_paths_or_strings_and_begin_at_home(
    lm: rm.LM, session: rm.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    session.save("~/kept")
    assert (tmp_path / "kept" / "moment.json").is_file()
    with rm.Session(lm, tmp_path / "bank") as other:
        other.load(Path("~") / "kept")
        assert [chunk.text for chunk in other.bank.list()] == [FACT]
    with rm.Session(lm, "~/bank") as same:
        assert len(same.bank) == 1
    with Bank.open(Path("~/bank")) as bank:
        assert len(bank) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lm": None}, "lm is None"),
        ({"lm": 3}, "lm is 3"),
        ({"lm": b"tiny"}, "lm is"),
        ({"lm": ""}, "lm is ''"),
        ({"method": None}, "method is None"),
        ({"method": 3}, "method is 3"),
        ({"method": rm.Session}, "method is"),
        ({"namespace": None}, "namespace is None"),
        ({"namespace": 3}, "namespace is 3"),
        ({"namespace": ""}, "namespace is ''"),
        ({"retrieval": None}, "retrieval is None"),
        ({"retrieval": "vector"}, "retrieval is 'vector'"),
        ({"embedder": "BAAI/bge-m3"}, "embedder is"),
        ({"seed": None}, "seed is None"),
        ({"seed": NAN}, "seed is nan"),
        ({"seed": 2**64}, "seed is"),
        ({"adopt": "yes"}, "adopt is"),
    ],
)
def test_a_session_that_cannot_be_is_refused(lm: rm.LM, given: dict[str, Any], words: str):
    refused(lambda: rm.Session(**{"lm": lm, **given}), words)


def test_a_model_of_transformers_is_no_lm_yet(lm: rm.LM):
    refused(lambda: rm.Session(lm.model), "from_transformers")  # type: ignore[arg-type]


def test_a_model_may_be_named_by_a_path(tmp_path: Path):
    refused(lambda: rm.load(tmp_path / "nowhere"), "nowhere")
    for name in (None, 3, b"tiny", "", ["tiny"]):
        refused(lambda name=name: rm.load(name), "model is")  # type: ignore[misc]
    for device in ("gpu", 3.5, ""):
        refused(lambda device=device: rm.load("tiny", device=device), "device is")  # type: ignore[misc]
    for dtype in ("float33", 3, "int"):
        refused(lambda dtype=dtype: rm.load("nano", dtype=dtype), "dtype is")  # type: ignore[misc]


# -- any value at all --------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.fractions(),
    st.text(max_size=4),
    st.binary(max_size=3),
    st.lists(st.one_of(st.none(), st.text(max_size=3), st.integers()), max_size=3),
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.timedeltas(),
    st.dates(),
    st.sampled_from([np.int64(3), np.float32(0.5), np.float64("nan"), np.bool_(True), Path("a"), torch.tensor(1)]),
    st.complex_numbers(),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*Options.__dataclass_fields__, "n"]), VALUES, max_size=3))
def test_any_options_are_checked_or_one_line(options: dict[str, Any]):
    checked = result_or_error(lambda: Options.of(options, seed=0))
    if isinstance(checked, RemanenceError):
        assert is_one_line(checked)
        return
    assert type(checked.max_tokens) is int
    assert type(checked.seed) is int
    assert type(checked.temperature) is type(checked.top_p) is float
    assert type(checked.recall) is type(checked.attribution) is bool
    assert all(type(text) is str for text in (*checked.stop, *checked.without))
    torch.Generator().manual_seed(checked.seed)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_any_time_is_seconds_or_one_line(value: Any):
    seconds = result_or_error(lambda: arguments.expiry("expires", value, NOW))
    if isinstance(seconds, RemanenceError):
        assert is_one_line(seconds)
        return
    assert seconds is None or (type(seconds) is float and NOW < seconds < arguments.LAST_SECOND)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    given=st.dictionaries(st.sampled_from(["text", "source", "expires", "supersedes", "metadata"]), VALUES, max_size=3)
)
def test_any_write_is_a_receipt_or_one_line(session: rm.Session, given: dict[str, Any]):
    receipt = result_or_error(lambda: session.write(**{"text": "Bruno keeps goats.", **given}, warm=False))
    if isinstance(receipt, RemanenceError):
        assert is_one_line(receipt)
        return
    assert receipt.num_chunks >= 1


def test_a_value_whose_repr_fails_is_still_one_line():
    class Odd:
        def __repr__(self) -> str:
            raise ValueError("no")

    refused(lambda: arguments.whole("max_tokens", Odd(), 1), "no repr.*Odd")
