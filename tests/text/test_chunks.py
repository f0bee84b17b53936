from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.errors import InputError
from remanence.text.chunks import split


def count_bytes(text: str) -> int:
    return len(text.encode())


def count_words(text: str) -> int:
    return len(text.split())


def count_thirds(text: str) -> int:
    """Counts a joined text higher than its parts, as a real tokenizer sometimes does."""
    return len(text) // 3 + text.count(" ") + text.count("\n") * 2 + 1


TEXTS = st.text(alphabet=st.sampled_from("ab Dr.!?。，\n\t1é\u0301😀\u200d漢-*\u00a0\x1c"), max_size=400) | st.text(
    max_size=120
).filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))


@settings(deadline=None)
@given(TEXTS, st.integers(min_value=4, max_value=40), st.sampled_from([count_bytes, count_words, count_thirds]))
def test_every_character_is_in_exactly_one_piece(text, max_tokens, count):
    if count is count_thirds:
        max_tokens += 4
    pieces = split(text, count, max_tokens)
    end = 0
    for piece in pieces:
        assert text[end : piece.start].strip() == "", "only white space may stand between pieces"
        assert text[piece.start : piece.end] == piece.text == piece.text.strip() != ""
        assert piece.num_tokens == count(piece.text) <= max_tokens
        end = piece.end
    assert text[end:].strip() == ""


def texts(*args, **kwargs) -> list[str]:
    return [piece.text for piece in split(*args, **kwargs)]


def test_short_paragraphs_share_a_piece_and_long_ones_do_not():
    text = "One two.\n\nThree four.\n\nFive six seven eight nine."
    assert texts(text, count_words, 6) == ["One two.\n\nThree four.", "Five six seven eight nine."]


def test_a_long_paragraph_is_cut_between_sentences():
    text = "Dr. Smith paid 3.5 coins. He left at 4 p.m. and slept! Was it late? It was."
    assert texts(text, count_words, 7) == [
        "Dr. Smith paid 3.5 coins.",
        "He left at 4 p.m. and slept!",
        "Was it late? It was.",
    ]


def test_chinese_sentences_need_no_space():
    text = "灯塔建于一九一二年。它有九十四级台阶！谁在看守？“是老林。”他说。"
    assert texts(text, len, 12) == ["灯塔建于一九一二年。", "它有九十四级台阶！", "谁在看守？“是老林。”", "他说。"]


def test_a_long_chinese_sentence_is_cut_at_commas():
    assert texts("甲乙丙丁，戊己庚辛，壬癸", len, 6) == ["甲乙丙丁，", "戊己庚辛，", "壬癸"]


def test_list_items_are_not_torn():
    text = "- red apples cost two\n- green pears cost three\n- blue plums cost four"
    assert texts(text, count_words, 6) == text.split("\n")


def test_a_sentence_that_is_too_long_is_cut_between_words():
    pieces = texts("alpha beta gamma delta epsilon zeta eta theta", len, 16)
    assert " ".join(pieces) == "alpha beta gamma delta epsilon zeta eta theta"
    assert all(len(piece) <= 16 for piece in pieces)


def test_an_accent_stays_with_its_letter():
    word = "e\u0301" * 40
    assert all(piece.startswith("e") for piece in texts(word, len, 9))


def test_nothing_gives_nothing():
    assert split("", count_words) == split(" \n\t", count_words) == []


def test_a_character_that_cannot_fit_is_an_error():
    with pytest.raises(InputError, match=r"'😀' alone is more.*larger max_tokens"):
        split("a 😀", count_bytes, 3)
    with pytest.raises(InputError, match="max_tokens is 0"):
        split("a", count_bytes, 0)


@pytest.mark.parametrize(
    "text",
    ["word " * 200_000, "x" * 1_000_000, "." * 1_000_000, "Short one. " * 90_000, "\n" * 1_000_000, "a\n\n" * 300_000],
    ids=["words", "letters", "dots", "sentences", "newlines", "paragraphs"],
)
def test_each_character_is_counted_a_bounded_number_of_times(text):
    counted = 0

    def count(part: str) -> int:
        nonlocal counted
        counted += len(part)
        return len(part) // 4 + 1

    pieces = split(text, count)
    assert sum(piece.end - piece.start for piece in pieces) >= 0.6 * len(text.replace("\n", "").replace(" ", ""))
    assert counted <= 10 * len(text)
