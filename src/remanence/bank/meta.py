"""`meta.json`: the format of a bank, how its text is indexed, and what each of its tables holds."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from remanence.bank.checksums import digest
from remanence.errors import BankCorrupted, BankError, InputError
from remanence.files import write_whole

FORMAT = 3
FILE = "meta.json"
OURS = {FILE, "bank.lock", "sums.txt"}


STOP_WORDS = (
    "a an and are as at be but by did do does for had has have he her his how i if in into is it its me my not of on"
    " or our she so such that the their them then there these they this to was we were what when where which who whom"
    " why will with would you your"
)


@dataclass(frozen=True)
class TextIndex:
    """How BM25 sees words. "icu/split" also cuts Chinese, Japanese and Thai into words.

    `stop_words` are not searched for. (Lance's own list for this tokenizer holds all digits and
    single Chinese words: "room 7" would be "room".)
    """

    tokenizer: str = "icu/split"
    language: str = "English"
    stem: bool = True
    stop_words: str = STOP_WORDS

    def settings(self) -> dict[str, Any]:
        """What Lance's full-text index is made with."""
        stop = self.stop_words.split()
        return {
            "base_tokenizer": self.tokenizer,
            "language": self.language,
            "stem": self.stem,
            "remove_stop_words": bool(stop),
            "custom_stop_words": stop or None,
            "with_position": False,
        }


@dataclass
class Meta:
    """`tables`: name -> what it holds ("kind", and the full fingerprint or embedder name behind its hash).

    `ready`: the chunks table was made, so that its absence is damage. `dirty`: tables with removed rows
    whose bytes are still on disk.
    """

    text_index: TextIndex
    created: float = field(default_factory=time.time)
    ready: bool = False
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    dirty: list[str] = field(default_factory=list)
    format: int = FORMAT

    def of_kind(self, kind: str) -> dict[str, dict[str, Any]]:
        return {name: entry for name, entry in self.tables.items() if entry["kind"] == kind}


def read_meta(folder: Path) -> Meta | None:
    """None where `folder` holds no bank; errors for a damaged one and for one of a later format."""
    meta = None
    try:
        content = json.loads((folder / FILE).read_bytes())
        body = content["body"]
        intact = content["checksum"] == digest(json.dumps(body, sort_keys=True))
        if intact and body["format"] < FORMAT:
            problem = f"bank {str(folder)!r} has format {body['format']}, from before the first release"
            raise BankError(problem, "export it with the remanence that wrote it, and import that into a new bank")
        if intact and body["format"] > FORMAT:
            problem = f"bank {str(folder)!r} has format {body['format']}, this remanence reads up to {FORMAT}"
            raise BankError(problem, "use the remanence that wrote it, or a later one")
        meta = Meta(**body | {"text_index": TextIndex(**body["text_index"])})
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BankError(f"bank {str(folder)!r} cannot be opened: {reason}", "check its mode and owner") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact or meta is None:
        hint = f"restore {FILE} from a copy of the bank; the tables beside it are not touched"
        raise BankCorrupted(f"{FILE} of bank {str(folder)!r} is not what was written", hint)
    return meta


def write_meta(folder: Path, meta: Meta) -> None:
    """Replaces the file in one step and waits until it is on disk."""
    body = asdict(meta)
    content = {"body": body, "checksum": digest(json.dumps(body, sort_keys=True))}
    write_whole(folder / FILE, json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")


def check_empty(folder: Path) -> None:
    """InputError where a new bank would land among other files."""
    others = sorted(name for name in os.listdir(folder) if name not in OURS and not name.startswith("."))
    if "chunks.lance" in others and FILE not in os.listdir(folder):
        problem = f"bank {str(folder)!r} has lost its {FILE}"
        raise BankCorrupted(problem, "restore it from a copy of the bank; the tables beside it are not touched")
    if others and FILE not in os.listdir(folder):
        problem = f"{str(folder)!r} is not a bank: it has no {FILE}, but holds {others[0]!r}"
        raise InputError(problem, "give a new or empty folder, or the folder of a bank")
