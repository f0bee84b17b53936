"""From files of text to a folder of sequences and references that a training run reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remanence.data.books import read_books
from remanence.data.sequences import ABOUT, About, Stored, unfinish, write_about, write_references, write_sequences
from remanence.errors import InputError
from remanence.text.documents import READERS, read_documents
from remanence.train.references import Cutting, Found, Text, find_references, lay_out
from remanence.train.tokenizer import fingerprint

RECORDS = (".jsonl", ".jsonl.gz")
KEPT = "valid"
"""Files whose name begins so are for evaluation: their sequences, and references of their own, in a folder so named."""

Advance = Callable[[int], None]


def build(
    data: Path,
    out: Path,
    tokenizer: Any,
    cutting: Cutting,
    damaged: list[str] | None = None,
    advance: Advance = lambda done: None,
) -> dict[str, About]:
    """Writes `out` (and `out/valid`, where `data` is a folder with files of that name), and what each holds.

    The same texts give the same files. All of it is held in RAM, about 200 bytes a token. `damaged`: as `read_books`.
    """
    if (out / ABOUT).exists():
        raise InputError(f"{str(out)!r} holds sequences already", "give another --out, or remove it")
    files = text_files(data)
    kept = [file for file in files if file.name.startswith(KEPT)] if data.is_dir() else []
    parts = {"": [file for file in files if file not in kept], KEPT: kept}
    if not parts[""]:
        raise InputError(
            f"{str(data)!r} holds only files that are kept for evaluation", f"name one of them, as in {kept[0]}"
        )
    texts = {name: [each for file in chosen for each in read_texts(file, damaged)] for name, chosen in parts.items()}
    for name, chosen in parts.items():
        if chosen and not any(text.strip() for text, _ in texts[name]):
            raise InputError(f"there is no text in {', '.join(map(str, chosen))}", "give files that hold some")
        unfinish(out / name)  # so that nothing of an earlier run, that was stopped, is taken for a part of this one
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out / "tokenizer")
    made: dict[str, About] = {}
    for name in filter(texts.get, (KEPT, "")):  # what training looks for is finished last
        made[name or "train"] = build_part(texts[name], out / name, tokenizer, cutting, advance)
    return made


def text_files(data: Path) -> list[Path]:
    """`data` itself, or of a folder all files that can be read, by name. InputError where there are none."""
    if data.is_file():
        return [data]
    files = sorted(path for path in data.rglob("*") if path.is_file() and _is_text(path)) if data.is_dir() else []
    if not files:
        what = "holds no file that can be read" if data.is_dir() else "does not exist"
        raise InputError(f"{str(data)!r} {what}", f"give {' '.join(RECORDS)}, or {' '.join(READERS)}")
    return files


def _is_text(path: Path) -> bool:
    return path.name.endswith(RECORDS) or path.suffix.lower() in READERS


def read_texts(file: Path, damaged: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """Documents of one file, and their names: FILE#NUMBER, from 1."""
    if file.name.endswith(RECORDS):
        texts: Iterator[str] = read_books(file, damaged)
    else:
        texts = (document.text for document in read_documents([file]))
    yield from ((text, f"{file.name}#{number}") for number, text in enumerate(texts, 1))


def build_part(
    documents: list[tuple[str, str]], folder: Path, tokenizer: Any, cutting: Cutting, advance: Advance
) -> About:
    """InputError where not one sequence has a reference for each of its chunks; nothing is finished then."""
    folder.mkdir(parents=True, exist_ok=True)
    bos, eos = ([] if each is None else [each] for each in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    ids = [_encoded(tokenizer, text) for text, _ in documents]
    sources = [source for _, source in documents]
    text = lay_out(ids, cutting, bos, eos)
    about = About(
        tokenizer=fingerprint(tokenizer),
        vocab_size=len(tokenizer),
        sequence_tokens=cutting.sequence_tokens,
        chunk_tokens=cutting.chunk_tokens,
        reference_tokens=cutting.reference_tokens,
        overlap_limit=cutting.overlap_limit,
    )

    def decode(rows: Any) -> list[str]:
        return tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    counted, every = _Counted(), range(text.num_references)
    num_references = write_references(folder, ((text.reference(r), sources[text.owner_R[r]]) for r in every))
    rows = counted.rows(find_references(text, cutting, decode, advance), text, cutting, sources)
    num_sequences = sum(write_sequences(folder, about, rows))
    if num_sequences == 0:
        raise InputError(
            f"of {len(documents)} texts for {str(folder)!r} ({len(text.ids_N):,} tokens) not one sequence of "
            f"{cutting.sequence_tokens} has a reference for each of its chunks",
            "give more text, or a smaller --sequence-tokens",
        )
    return write_about(
        folder,
        replace(
            about,
            num_sequences=num_sequences,
            num_references=num_references,
            left_out=counted.left_out,
            rejected=counted.rejected,
        ),
    )


def _encoded(tokenizer: Any, text: str) -> NDArray[np.int32]:
    """A list takes nine times the room."""
    return np.array(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), np.int32)


class _Counted:
    """Counts what is left out while rows pass by."""

    def __init__(self) -> None:
        self.left_out = self.rejected = 0

    def rows(self, found: Iterator[Found], text: Text, cutting: Cutting, sources: list[str]) -> Iterator[Stored]:
        for each in found:
            self.rejected += each.rejected
            if each.references is None:
                self.left_out += 1
                continue
            ids = text.ids_N[each.begin : each.begin + cutting.sequence_tokens]
            yield Stored(ids, each.references, sources[text.document_at(each.begin)])
