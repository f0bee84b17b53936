"""Trains nano's byte-level BPE tokenizer: digits in groups of two, and the chat template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from remanence.data.facts import sample_group

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
WORD = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] | trim + '\nAnswer:' }}"
    "{% else %}{{ message['content'] | trim + '\n' }}{% endif %}{% endfor %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly `vocab_size` entries or fewer where the texts have no more pairs.

    Every text begins with one space: one is put in front where there is none, and decoding shows it.
    """
    tokenizer = Tokenizer(models.BPE())
    # A word is the same tokens at the beginning of a text as within: names must match wherever they stand.
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
    """`count` groups of passages with their questions, in the format that nano reads."""
    rng = Random(f"tokenizer {seed}")
    for _ in range(count):
        example = sample_group(rng, 2)
        lines = [f" {passage.text}\n" for passage in example.passages]
        lines += [f"Question: {question.text}\nAnswer: {question.answer}\n" for question in example.questions]
        yield "Reference:" + "".join(lines)
