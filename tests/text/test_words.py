from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remanence.text.words import MAX_WEIGHT, WORD, content_words, coverage, plain, stem, terms


@pytest.mark.parametrize(
    "words",
    [
        "move moved moves moving",
        "city cities",
        "stop stopped stopping",
        "code codes",
        "call called calls",
        "boat boats",
    ],
)
def test_forms_of_a_word_meet(words):
    assert len({stem(word) for word in words.split()}) == 1


@pytest.mark.parametrize("word", ["bus", "glass", "ring", "red", "this", "4417", "x2"])
def test_short_and_odd_words_are_left_alone(word):
    assert stem(word) == word


def test_asking_is_not_content_and_names_count_twice():
    assert content_words("Question: What is Ada's locker code?\nAnswer:") == {"ada": 2, "locker": 1, "cod": 1}
    assert content_words("Who are you?") == {}
    assert content_words("Which bell rang in 1912?") == {"bell": 1, "rang": 1, "1912": 2}


def test_generic_words_count_only_where_there_are_no_others():
    assert content_words("In what year did the plague come to Ost?") == {"plagu": 1, "ost": 2}
    assert content_words("What is my number?") == {"number": 1}


def test_names_side_by_side_count_as_one_more_name():
    wanted = content_words("Where did Petra Voss live in 1912?")
    assert wanted == {"petra": 2, "voss": 2, "petra voss": 2, "liv": 1, "1912": 2}
    assert coverage(wanted, "Petra Voss") > coverage(wanted, "Petra Klein met Anna Voss")


def test_accents_case_and_width_do_not_matter():
    assert coverage(content_words("Where is ZOË's ｃａｆｅ?"), "Zoe has a café.") == 1


def test_a_name_outweighs_what_is_asked_about_it():
    wanted = content_words("What is the capital of France?")
    assert coverage(wanted, "The capital of Veldoria is Ost.") < 0.5
    assert coverage(wanted, "Paris is the largest city of France.") > 0.5


def test_chinese_is_compared_by_pairs():
    wanted = content_words("阿达的柜子密码是多少？")
    assert set(wanted) == {"阿达", "柜子", "子密", "密码"}
    assert coverage(wanted, "阿达的柜子密码是4417。") == 1
    assert coverage(wanted, "今天的天气很好。") == 0
    assert coverage(content_words("谁是王？"), "老王") > 0


def test_a_long_question_needs_only_a_part():
    question = "red green blue cyan pink white black brown grey gold silver lime"
    assert coverage(content_words(question), "red green blue cyan") == 0.5


@given(st.text(max_size=60))
def test_every_text_covers_itself(text):
    wanted = content_words(text)
    assert coverage(wanted, text) == (1.0 if wanted else 0.0)


FORMS = st.text("adeginosy'é ", max_size=12).map(lambda word: word + " ")


@given(st.lists(FORMS, max_size=6).map("".join), st.lists(FORMS, max_size=12).map("".join), st.booleans())
def test_coverage_is_what_stemming_every_word_gives(question, text, capital):
    wanted = content_words(question.title() if capital else question)
    stems = [stem(word) for word in WORD.findall(plain(text))]
    words = {*stems, *map(" ".join, pairwise(stems))}
    found = sum(weight for word, weight in wanted.items() if word in words)
    assert coverage(wanted, text) == (min(1.0, found / min(sum(wanted.values()), MAX_WEIGHT)) if wanted else 0.0)


def test_terms_are_stems_in_order_without_stop_words():
    assert terms("The boats moved, and Zoë's boat's MOVING.") == ["boat", "mov", "zoe", "boat", "mov"]
    assert terms("4417 灯塔有 x 塔") == ["4417", "x", "灯塔", "塔有", "塔"]
    assert terms("It is to be.") == []
