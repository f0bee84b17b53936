"""Where chunks and what models made of them are kept: bytes on disk, no knowledge of any model."""

from remanence.bank.bank import Bank
from remanence.bank.draft import Draft, chunk_id
from remanence.bank.meta import TextIndex
from remanence.bank.reports import BankStats, CompactReceipt, VerifyReport

__all__ = ["Bank", "BankStats", "CompactReceipt", "Draft", "TextIndex", "VerifyReport", "chunk_id"]
