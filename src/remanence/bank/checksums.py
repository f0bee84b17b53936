"""Checksums of rows and payloads, and `sums.txt`: size and SHA-256 of every file that Lance wrote."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from remanence.files import sync_folder, write_whole

FILE = "sums.txt"
MUTABLE = ("latest_version_hint.json",)
HINTS = f"*/_versions/{MUTABLE[0]}"
LAST_VERSION = 2**64 - 1
"""Lance names the manifest of version n after this number less n."""
CLEANUP = "cleanup"
BLOCK_BYTES = 1 << 20
Sum = tuple[str, int]


def digest(*parts: str | bytes) -> str:
    """32 hex digits over `parts`, each with its length, so that no two lists of parts collide."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()[:32]


class FileSums:
    """The sums of one bank's files. Lance never changes a file once written, so a sum holds until removal."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sums: dict[str, Sum] = {}
        self.cleanups: set[str] = set()
        self.damaged_lines: list[int] = []
        self._read_stamp: tuple[int, int, int] | None = None

    @property
    def path(self) -> Path:
        return self.root / FILE

    def load(self) -> None:
        """Reads `sums.txt` again if it changed. A torn last line is what a killed writer leaves: not damage."""
        stamp = self._stamp()
        if stamp == self._read_stamp and stamp:
            return
        self.sums, self.cleanups, self.damaged_lines = {}, set(), []
        *lines, torn = self.path.read_bytes().split(b"\n") if stamp else [b""]
        for number, line in enumerate(lines, start=1):
            self._read_line(number, line)
        if _parse(torn) or _parse(torn[:-1]):  # a whole line whose end was changed: nobody stopped there
            self.damaged_lines.append(len(lines) + 1)
        self._read_stamp = stamp

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _read_line(self, number: int, line: bytes) -> None:
        parsed = _parse(line)
        if parsed is None:
            self.damaged_lines.append(number)
        elif parsed[0] == CLEANUP:
            self.cleanups.add(parsed[2])
        else:
            self.sums[parsed[2]] = (parsed[0], parsed[1])

    def add(self, folder: str) -> None:
        """Waits until every new file under `folder` is on disk, then records its sum."""
        self.load()
        new = [name for name in self.files(folder) if name not in self.sums]
        if not new:
            return
        sums = {name: _sum_file(self.root / name, sync=True) for name in new}
        for parent in {(self.root / name).parent for name in new} | {self.root / folder, self.root}:
            sync_folder(parent)
        try:
            self._append([_line(digest, size, name) for name, (digest, size) in sums.items()])
        except OSError:
            return  # the files themselves are safe; the next writer records them
        self.sums |= sums
        self._read_stamp = self._stamp()

    def begin_cleanup(self, folder: str) -> None:
        """Says that files of `folder` are about to be removed on purpose."""
        self.load()
        self._append([_line(CLEANUP, 0, folder)])

    def end_cleanup(self, folder: str) -> None:
        """Drops the sums of files that are gone, and the note that they may be."""
        self.load()
        present = set(self.files(folder))
        current = {n: s for n, s in self.sums.items() if not n.startswith(f"{folder}/") or n in present}
        lines = [_line(digest, size, name) for name, (digest, size) in current.items()]
        lines += [_line(CLEANUP, 0, other) for other in sorted(self.cleanups - {folder})]
        write_whole(self.path, b"".join(lines))
        self._read_stamp = None

    def _append(self, lines: list[bytes]) -> None:
        with open(self.path, "ab+") as file:
            end = file.tell()
            if end:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    self._cut_torn_line(file.fileno())
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())

    def _cut_torn_line(self, handle: int) -> None:
        os.ftruncate(handle, self.path.read_bytes().rfind(b"\n") + 1)

    def files(self, folder: str = "") -> Iterator[str]:
        """Every file under `folder` that never changes once written, relative to the bank, `/` between parts."""
        for parent, _, names in os.walk(self.root / folder):
            for name in names:
                if parent != str(self.root) and name not in MUTABLE:
                    yield Path(parent, name).relative_to(self.root).as_posix()

    def problems(self) -> list[str]:
        """One line for each file or line that is not what was written."""
        self.load()
        if not self._read_stamp:
            return [f"{FILE}: is missing"]
        problems = [f"{FILE}: line {number} is damaged" for number in self.damaged_lines]
        for name, (digest, size) in sorted(self.sums.items()):
            try:
                changed = _sum_file(self.root / name) != (digest, size)
            except FileNotFoundError:
                if name.split("/", 1)[0] not in self.cleanups:
                    problems.append(f"{name}: is missing")
                continue
            except OSError as error:
                problems.append(f"{name}: cannot be read ({error.strerror})")
                continue
            if changed:
                problems.append(f"{name}: is not what was written")
        return problems + [
            f"{path}: is not what was written" for path in self.root.glob(HINTS) if not _hint_holds(path)
        ]


def _hint_holds(path: Path) -> bool:
    """The one file that Lance rewrites names the newest version, or an older one after a crash: Lance looks further."""
    newest = max((LAST_VERSION - int(name.stem) for name in path.parent.glob("*.manifest")), default=0)
    try:
        content = json.loads(path.read_bytes())
        return content.keys() == {"version"} and 0 < content["version"] <= newest
    except (ValueError, TypeError, AttributeError):
        return False


def _line(digest: str, size: int, name: str) -> bytes:
    rest = f"{digest} {size} {name}".encode()
    return _code(rest) + b" " + rest + b"\n"


def _parse(line: bytes) -> tuple[str, int, str] | None:
    """Digest (or "cleanup"), size and name; None where the line is not what `_line` wrote."""
    code, _, rest = line.partition(b" ")
    parts = rest.decode("utf-8", "replace").split(" ", 2)
    if len(parts) != 3 or code != _code(rest) or not parts[1].isdigit():
        return None
    return parts[0], int(parts[1]), parts[2]


def _code(rest: bytes) -> bytes:
    return f"{zlib.crc32(rest):08x}".encode()


def _sum_file(path: Path, sync: bool = False) -> Sum:
    """SHA-256 (hex) and size; with `sync` after the file reached the disk."""
    hasher, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while block := file.read(BLOCK_BYTES):
            hasher.update(block)
            size += len(block)
    return hasher.hexdigest(), size
