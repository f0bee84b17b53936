"""Where in a bank's folder something can still be read: in bytes of a file, or in a row of any version of a table."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import lancedb


def traces(folder: Path, *strings: str) -> list[tuple[str, str]]:
    """(file or table, string), for each of `strings` that is found; by LanceDB's own reader, not by ours."""
    return in_bytes(folder, strings) + in_rows(folder, strings)


def in_bytes(folder: Path, strings: Collection[str]) -> list[tuple[str, str]]:
    contents = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return [
        (file.relative_to(folder).as_posix(), string)
        for file, content in contents.items()
        for string in strings
        if string.encode() in content or json.dumps(string)[1:-1].encode() in content
    ]


def in_rows(folder: Path, strings: Collection[str]) -> list[tuple[str, str]]:
    database = lancedb.connect(str(folder))
    found = []
    for name in database.list_tables().tables:
        table = database.open_table(name)
        for version in [each["version"] for each in table.list_versions()]:
            with suppress(Exception):  # of an older version files may be gone: then nobody can read it
                table.checkout(version)
                columns = [column for column in table.schema.names if column not in ("payload", "vector")]
                rows = str(table.search().select(columns).to_arrow().to_pylist())
                found += [(f"{name} version {version}", string) for string in strings if repr(string)[1:-1] in rows]
        table.checkout_latest()
        columns = [column for column in table.schema.names if column not in ("payload", "vector")]
        table.search().select(columns).to_arrow()  # the newest must be readable
    return found
