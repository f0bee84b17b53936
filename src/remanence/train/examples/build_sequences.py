"""Makes a folder of sequences and references, which training reads, from files of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remanence.data.books import read_books
from remanence.data.sequences import (
    ABOUT,
    About,
    StoredSequence,
    unfinish,
    write_about,
    write_references,
    write_sequences,
)
from remanence.errors import InputError
from remanence.text.documents import READERS, read_documents
from remanence.train.examples.references import Cutting, MatchedSequence, Text, find_references, lay_out
from remanence.train.examples.tokenizer import fingerprint

RECORDS = (".jsonl", ".jsonl.gz")
VALIDATION = "valid"
"""Files whose name begins with this are held out for evaluation; their sequences are in a folder of this name."""

Advance = Callable[[int], None]


def build(
    data: Path,
    out: Path,
    tokenizer: Any,
    cutting: Cutting,
    damaged: list[str] | None = None,
    advance: Advance = lambda done: None,
) -> dict[str, About]:
    """Writes `out`, and `out/valid` if `data` is a folder with held-out files; returns the description of each.

    The same texts give the same files. The texts are held in RAM, about 200 bytes per token. `damaged`: as in
    `read_books`. InputError if `out` holds sequences, or the texts are not enough.
    """
    if (out / ABOUT).exists():
        raise InputError(f"{str(out)!r} holds sequences already", "use another --out, or remove it")
    files = text_files(data)
    heldout = [file for file in files if file.name.startswith(VALIDATION)] if data.is_dir() else []
    parts = {"": [file for file in files if file not in heldout], VALIDATION: heldout}
    if not parts[""]:
        raise InputError(
            f"{str(data)!r} holds only files that are held out for evaluation", f"name one of them, as in {heldout[0]}"
        )
    texts = {name: [each for file in chosen for each in read_texts(file, damaged)] for name, chosen in parts.items()}
    for name, chosen in parts.items():
        if chosen and not any(text.strip() for text, _ in texts[name]):
            raise InputError(f"there is no text in {', '.join(map(str, chosen))}", "give files that hold some")
        unfinish(out / name)  # removes what an earlier run, which was stopped, has left
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out / "tokenizer")
    descriptions: dict[str, About] = {}
    for name in filter(texts.get, (VALIDATION, "")):  # the part that training reads is finished last
        descriptions[name or "train"] = build_part(texts[name], out / name, tokenizer, cutting, advance)
    return descriptions


def text_files(data: Path) -> list[Path]:
    """`data` itself, or all readable files of a folder, sorted by name. InputError if there are none."""
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
    """(text, name) of the documents in a file. The name is FILE#NUMBER, counted from 1."""
    if file.name.endswith(RECORDS):
        texts: Iterator[str] = read_books(file, damaged)
    else:
        texts = (document.text for document in read_documents([file]))
    yield from ((text, f"{file.name}#{number}") for number, text in enumerate(texts, 1))


def build_part(
    documents: list[tuple[str, str]], folder: Path, tokenizer: Any, cutting: Cutting, advance: Advance
) -> About:
    """Writes one part. InputError if no sequence has a reference for each of its chunks; then nothing is finished."""
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
    """Token ids as an array: a list takes nine times the memory."""
    return np.array(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), np.int32)


class _Counted:
    """Counts the sequences that are left out and the hits that are rejected."""

    def __init__(self) -> None:
        self.left_out = self.rejected = 0

    def rows(
        self, matches: Iterator[MatchedSequence], text: Text, cutting: Cutting, sources: list[str]
    ) -> Iterator[StoredSequence]:
        for each in matches:
            self.rejected += each.rejected
            if each.references is None:
                self.left_out += 1
                continue
            ids = text.ids_N[each.begin : each.begin + cutting.sequence_tokens]
            yield StoredSequence(ids, each.references, sources[text.document_at(each.begin)])
