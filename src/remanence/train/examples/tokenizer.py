"""Tokenizers: trains that of nano (byte-level BPE, digits in pairs), loads others by name, and fingerprints them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from remanence.data.facts import sample_group
from remanence.errors import InputError
from remanence.lm.folders import BUNDLED
from remanence.lm.tiny import byte_tokenizer

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
WORD = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] | trim + '\nAnswer:' }}"
    "{% else %}{{ message['content'] | trim + '\n' }}{% endif %}{% endfor %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with `vocab_size` entries, or fewer if the texts have no more pairs to merge.

    Every text gets exactly one leading space, which decoding shows.
    """
    tokenizer = Tokenizer(models.BPE())
    # A word has the same tokens at the beginning of a text as inside it: names must match everywhere.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A  +"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def generator_texts(seed: int, count: int) -> Iterator[str]:
    """`count` groups of passages with their questions, in the format of nano's prompts."""
    rng = Random(f"tokenizer {seed}")
    for _ in range(count):
        example = sample_group(rng, 2)
        lines = [f" {passage.text}\n" for passage in example.passages]
        lines += [f"Question: {question.text}\nAnswer: {question.answer}\n" for question in example.questions]
        yield "Reference:" + "".join(lines)


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a bundled model, of "tiny", of a folder, or of a cached Hub id. InputError if there is none."""
    if str(name) == "tiny":
        return byte_tokenizer()
    folder = BUNDLED.get(str(name), Path(name))
    local = folder.is_dir() or "/" not in str(name)
    try:
        where = str(folder) if folder.is_dir() else str(name)
        return AutoTokenizer.from_pretrained(where, local_files_only=local, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"the tokenizer of {str(name)!r} cannot be loaded",
            "use 'nano', a folder with tokenizer.json, or a Hub id of the form owner/name",
        ) from error


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 (hex) over vocabulary and rules: equal fingerprints give equal tokens."""
    digest = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        relevant = {name: rules.get(name) for name in ("normalizer", "pre_tokenizer", "model")}
        digest.update(json.dumps(relevant, sort_keys=True).encode())
    return digest.hexdigest()
