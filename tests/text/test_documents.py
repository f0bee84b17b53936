from __future__ import annotations

import io
import os
import shlex
import sys
from pathlib import Path

import pytest

from remanence.errors import InputError, MissingExtra
from remanence.text import formats
from remanence.text.documents import Problem, read_documents


def read_all(*paths, **kwargs):
    """(documents, problems) of a reading that never raises."""
    problems: list[Problem] = []
    return list(read_documents(paths, on_problem=problems.append, **kwargs)), problems


def error_of(path) -> str:
    with pytest.raises(InputError) as caught:
        list(read_documents([path]))
    assert "\n" not in str(caught.value)
    assert " -> " in str(caught.value), "an error says the way out"
    return str(caught.value)


def test_text_and_markdown(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n")
    (tmp_path / "b.md").write_text("# Title\n\nBody")
    documents, problems = read_all(tmp_path)
    assert [document.text for document in documents] == ["one\ntwo\nthree\n", "# Title\n\nBody"]
    assert documents[0].source == str(tmp_path / "a.txt")
    assert problems == []


def test_a_named_file_of_unknown_extension_is_text(tmp_path):
    (tmp_path / "Makefile").write_text("all:")
    assert read_all(tmp_path / "Makefile")[0][0].text == "all:"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_understood(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("Zoë 漢字".encode(encoding))
    assert read_all(tmp_path / "a.txt")[0][0].text == "Zoë 漢字"


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '\ufeff{"text": "one", "source": "s", "year": 1912, "metadata": {"by": "Ada"}}\n\n{"text": "two\\r\\n"}\n'
    )
    one, two = read_all(path)[0]
    assert (one.text, one.source, dict(one.metadata)) == ("one", "s", {"year": "1912", "by": "Ada"})
    assert (two.text, two.source) == ("two\n", f"{path}:3")


def test_one_bad_line_does_not_lose_the_others(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        '{"text": "one"}',
        '{"text": ',
        '["text"]',
        '{"text": 3}',
        r'{"text": "\ud800"}',
        '{"text": " "}',
        '{"text": "two"}',
    ]
    path.write_text("\n".join(lines))
    documents, problems = read_all(path)
    assert [document.text for document in documents] == ["one", "two"]
    messages = [str(problem.error) for problem in problems]
    assert [message.split(" of ")[0] for message in messages] == [f"line {n}" for n in (2, 3, 4, 5, 6)]
    assert "broken JSON" in messages[0]
    assert "lone surrogate U+D800" in messages[3]


def test_many_bad_lines_are_reported_as_a_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{\n" * 25 + '{"text": "good"}')
    documents, problems = read_all(path)
    assert len(documents) == 1
    assert len(problems) == formats.MAX_BAD_LINES + 1
    assert "15 more lines" in str(problems[-1].error)


def test_html_shows_only_what_a_reader_sees(tmp_path):
    (tmp_path / "a.html").write_text(
        "<html><head><title>The  Light</title><style>p{}</style></head><body><h1>Tower</h1>"
        "<script>var x = '<p>no</p>'</script><p>Ninety&nbsp;four\n steps &amp; a <b>bell</b>.</p>"
        "<ul><li>one</li><li>two</li></ul><table><tr><td>a</td><td>b</td></tr></table></body></html>"
    )
    (document,), _ = read_all(tmp_path)
    assert document.text == "Tower\n\nNinety four steps & a bell.\n\none\n\ntwo\n\na b"
    assert document.metadata == {"title": "The Light"}


def test_html_may_declare_its_encoding(tmp_path):
    (tmp_path / "a.html").write_bytes('<meta charset="gb2312"><p>灯塔</p>'.encode("gb2312"))
    assert read_all(tmp_path)[0][0].text == "灯塔"


def test_folders_are_read_recursively_without_hidden_files(tmp_path):
    for name in ("b/c/deep.txt", "a.txt", ".hidden.txt", ".git/config.txt", "photo.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    documents, problems = read_all(tmp_path)
    assert [document.text for document in documents] == ["a.txt", "b/c/deep.txt"]
    assert [(os.path.basename(problem.path), problem.failed) for problem in problems] == [
        ("loop", False),
        ("photo.jpg", False),
    ]
    assert "unknown extension '.jpg'" in str(problems[1].error)
    assert len(list(read_documents([tmp_path]))) == 2, "what is passed over on purpose is no error"


def test_one_bad_file_does_not_lose_the_others(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.txt").write_text("good")
    (tmp_path / "c.txt").write_text("")
    reading = read_documents([tmp_path])
    assert next(reading).text == "good"
    with pytest.raises(InputError, match=r"2 inputs cannot be used, the first: .*a\.txt"):
        next(reading)


def test_standard_input(monkeypatch):
    for arguments in ({"paths": [], "stdin": True}, {"paths": ["-"]}):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Grüße".encode())))
        (document,) = read_documents(**arguments)
        assert (document.text, document.source) == ("Grüße", "stdin")


def test_missing_file(tmp_path):
    assert "nowhere.txt' does not exist" in error_of(tmp_path / "nowhere.txt")


def test_empty_and_blank_files(tmp_path):
    for name, content in (("a.txt", ""), ("b.jsonl", "\n\n"), ("c.html", "<p> </p>")):
        (tmp_path / name).write_text(content)
        assert "is empty" in error_of(tmp_path / name)
    (tmp_path / "d.txt").write_text(" \n\t")
    assert "only white space" in error_of(tmp_path / "d.txt")


def test_binary_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\0def")
    assert "is a binary file (NUL byte at offset 3)" in error_of(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("encoding", "text", "offset"), [("WINDOWS-1252", "caf\u00e9 au lait", 3), ("GB18030", "a灯塔很高", 1)]
)
def test_non_utf8_says_where_and_how_to_convert(tmp_path, encoding, text, offset):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    message = error_of(tmp_path / "a.txt")
    assert f"at offset {offset} " in message
    assert f"iconv -f {encoding} -t UTF-8" in message


def test_broken_utf16(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfea\x00\x00\xd8")
    assert "is not UTF-16-LE" in error_of(tmp_path / "a.txt")


def test_a_huge_line_is_refused_with_the_limit_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"x" * (3 << 20) + b'"}\n{"text": "next"}\n')
    documents, problems = read_all(tmp_path)
    assert [document.text for document in documents] == ["next"]
    assert "longer than 1 MiB" in str(problems[0].error)


def test_a_file_of_100_mb_is_refused(tmp_path):
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(100 << 20)  # takes no disk: a hole
    message = error_of(tmp_path / "a.txt")
    assert "larger than 64 MiB" in message
    assert ".jsonl" in message


def test_no_permission(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "good.txt").write_text("good")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    documents, problems = read_all(tmp_path)
    assert len(documents) == 1
    assert "no permission to read" in str(problems[0].error)
    assert problems[0].failed


def test_a_file_that_may_be_listed_but_not_looked_at_does_not_lose_the_others(tmp_path, monkeypatch):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "locked.txt").write_text("locked")
    stat = os.stat

    def guarded(path, **options):
        if str(path).endswith("locked.txt"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", guarded)
    documents, _ = read_all(tmp_path)
    assert "good" in [document.text for document in documents]


def test_a_broken_link_in_a_folder_is_reported(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    _, problems = read_all(tmp_path)
    assert "does not exist" in str(problems[0].error)


def test_a_link_in_a_folder_leads_to_its_own_files_only(tmp_path):
    for name in ("secret.txt", "in/own.txt", "in/deep/last.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "in" / "deep" / "inward.txt").symlink_to("../own.txt")
    (tmp_path / "in" / "deep" / "outward.txt").symlink_to(tmp_path / "secret.txt")
    documents, (problem,) = read_all(tmp_path / "in")
    assert [document.text for document in documents] == ["in/own.txt", "in/deep/last.txt", "in/own.txt"]
    assert "leads out of the folder" in str(problem.error)
    assert not problem.failed
    assert [document.text for document in read_all(tmp_path / "in" / "deep" / "outward.txt")[0]] == ["secret.txt"]
    (tmp_path / "named").symlink_to(tmp_path / "in")
    assert len(read_all(tmp_path / "named")[0]) == 3, "a folder that is named is read, also through a link"


def test_a_command_in_a_hint_can_be_pasted(tmp_path, monkeypatch):
    path = tmp_path / "it's.txt"
    path.write_bytes("Zoë kept the light.".encode("latin-1"))
    assert f"-t UTF-8 {shlex.quote(str(path))} > " in error_of(path)
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert f"`chmod u+r {shlex.quote(str(path))}`" in error_of(path)


def test_a_path_that_no_file_system_has():
    assert "cannot be read" in error_of("a\0b.txt")


def make_pdf(*texts: str) -> bytes:
    """The smallest PDF with one line of text a page."""
    kids = " ".join(f"{3 + 2 * i} 0 R" for i in range(len(texts)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(texts)} >>"]
    for i, text in enumerate(texts):
        stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET"
        font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Resources {font} /Contents {4 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n" + "".join(
        f"{offset:010d} 00000 n \n" for offset in offsets
    )
    return (out + f"trailer << /Root 1 0 R /Size {len(objects) + 1} >>\nstartxref\n{start}\n%%EOF").encode()


def test_pdf_gives_one_document_a_page(tmp_path):
    (tmp_path / "a.pdf").write_bytes(make_pdf("Ninety four steps", "", "A green door"))
    documents, _ = read_all(tmp_path)
    assert [document.text.strip() for document in documents] == ["Ninety four steps", "A green door"]
    assert documents[1].source.endswith("a.pdf#page=3")


@pytest.mark.parametrize("content", [b"%PDF-1.4 nonsense", make_pdf("")], ids=["broken", "scanned"])
def test_pdf_that_cannot_be_read(tmp_path, content):
    (tmp_path / "a.pdf").write_bytes(content)
    assert "a.pdf" in error_of(tmp_path / "a.pdf")


def test_pdf_without_pypdf_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(MissingExtra, match=r"\.\[pdf\]"):
        list(read_documents([tmp_path]))
