"""SQuAD, bAbI and book files of our own, well-formed and not."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from remanence.data.babi import parse_stories, read_babi
from remanence.data.books import paragraphs, read_books
from remanence.data.squad import read_squad
from remanence.errors import InputError

STORY = "1 Kim went to the attic.\n2 Where is Kim?\tattic\t1\n1 Bo took a pear.\n2 What has Bo?|pear|1\n"


def test_official_squad(tmp_path: Path) -> None:
    qas = [
        {"question": " Who? ", "answers": [{"text": "Kim"}, {"text": "Kim"}, {"text": "Kim Berg"}]},
        {"question": "Why?", "answers": [], "is_impossible": True},
    ]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Kim Berg came.", "qas": qas}]}]}))
    (context,) = read_squad(path)
    assert context.text == "Kim Berg came."
    assert context.questions == (("Who?", ("Kim", "Kim Berg")),)


def test_flat_squad_compressed(tmp_path: Path) -> None:
    path = tmp_path / "squad.json.gz"
    path.write_bytes(
        gzip.compress(json.dumps([{"context": "A b.", "qas": [{"question": "q", "answer": "b"}]}]).encode())
    )
    assert read_squad(path)[0].questions == (("q", ("b",)),)


@pytest.mark.parametrize("content", ["{}", "[1]", "not json", '[{"context": 3, "qas": []}]'])
def test_bad_squad_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"bad\.json"):
        read_squad(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read in (read_squad, lambda path: list(read_books(path)), read_babi):
        with pytest.raises(InputError, match="nowhere"):
            read(tmp_path / "nowhere")


def test_babi_lines() -> None:
    first, second = parse_stories(STORY)
    assert (first.text, first.question, first.answer) == ("Kim went to the attic.", "Where is Kim?", "attic")
    assert (second.text, second.answer) == ("Bo took a pear.", "pear")


def test_babi_archive(tmp_path: Path) -> None:
    path = tmp_path / "babi.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("tasks/en-10k/qa1_single_train.txt")
        info.size = len(STORY)
        archive.addfile(info, io.BytesIO(STORY.encode()))
    assert len(read_babi(path)) == 2
    assert read_babi(path, tasks=(2,)) == []


def test_books_and_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "books.jsonl"
    text = "# Title\n\n_It was_ a long\r\nday in the small harbour town where nothing\u2028 happened."
    text += " It was raining.\n\nshort"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n\n", encoding="utf-8")
    (found,) = list(read_books(path))
    (line,) = paragraphs(found)
    assert line.startswith("It was a long day in")
    path.write_text('{"title": "x"}\n')
    with pytest.raises(InputError, match="line 1"):
        list(read_books(path))


def test_a_file_that_is_damaged_in_the_middle_stops_or_is_skipped_as_told(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"Book {number} " + "and so on " * number}).encode() for number in range(200)]
    lines[3] = b'{"text": \xff\xfe}'
    whole = tmp_path / "books.jsonl.gz"
    whole.write_bytes(gzip.compress(b"\n".join(lines)))
    with pytest.raises(InputError, match="line 4 has no text"):
        list(read_books(whole))
    damaged: list[str] = []
    assert len(list(read_books(whole, damaged))) == 199
    assert damaged == [f"{whole} line 4 has no text"]
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(InputError, match="line 4 has no text"):
        list(read_books(broken))
    damaged.clear()
    found = list(read_books(broken, damaged))
    assert 50 < len(found) < 199
    assert damaged[1].startswith(f"{broken} breaks off after line")
    with pytest.raises(InputError, match="cannot read books from"):
        list(read_books(tmp_path / "missing.jsonl", damaged))


@pytest.mark.parametrize("line", ['{"text": 5}', '{"text": null}', '{"text": ["a"]}', "[1]", '{"txt": "a"}'])
def test_a_record_whose_text_is_none_is_named_or_skipped(tmp_path: Path, line: str) -> None:
    path = tmp_path / "books.jsonl"
    path.write_text(f'{{"text": "one"}}\n{line}\n{{"text": "two"}}\n')
    with pytest.raises(InputError, match="line 2 has no text"):
        list(read_books(path))
    damaged: list[str] = []
    assert list(read_books(path, damaged)) == ["one", "two"]
    assert len(damaged) == 1
