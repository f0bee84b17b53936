from __future__ import annotations

import time

import pytest

from remanence.errors import InputError, UnknownChunk
from remanence.text.retrieve import Retriever, Threshold, at_once, fuse

from .colours import ColourEmbedder, bank_of

TEXTS = (
    "The tower of Port Ellery has 94 steps.",
    "Port Ellery smells of tar.",
    "Mina painted her boat scarlet.",
    "Otto owns a navy coat.",
)


def search(query: str, limit: int = 5, **options) -> list[str]:
    return [hit.chunk.text for hit in retriever(**options).search(query, limit)]


def retriever(embedder=None, **options) -> Retriever:
    found = Retriever(bank_of(*TEXTS), embedder, **options)
    found.update()
    return found


def test_lexical_search_finds_and_ranks():
    assert search("How many steps has the tower of Port Ellery?", kind="lexical") == [TEXTS[0], TEXTS[1]]
    assert search("How many steps has the tower of Port Ellery?", limit=1, kind="lexical") == [TEXTS[0]]


@pytest.mark.parametrize("query", ["What is the capital of France?", "Who are you?", "the of a", "", " \n"])
@pytest.mark.parametrize("kind", ["lexical", "hybrid", "dense"])
def test_nothing_relevant_recalls_nothing(query, kind):
    assert search(query, kind=kind, embedder=ColourEmbedder(), threshold=Threshold(cosine=1.1)) == []


def test_dense_search_finds_other_words():
    assert search("What is red?", kind="lexical") == []
    assert search("What is red?", kind="dense", embedder=ColourEmbedder()) == [TEXTS[2]]
    assert search("What is red?", kind="hybrid", embedder=ColourEmbedder()) == [TEXTS[2]]


def test_a_hit_says_why_it_was_found():
    (hit, *_) = retriever(ColourEmbedder()).search("Which navy coat does Otto own?")
    assert hit.chunk.text == TEXTS[3]
    assert hit.found_by == {"lexical": 1, "dense": 1}
    assert 0.9 < hit.score <= 1


def test_scores_are_between_0_and_1():
    for hit in retriever(ColourEmbedder(), threshold=Threshold(0, -1)).search("navy tower boat", limit=9):
        assert 0 <= hit.score <= 1


def test_hybrid_without_an_embedder_is_bm25_and_says_so():
    assert "BM25 alone (no dense search: the model has no embedder" in retriever().describe()
    assert "fused by rank" in retriever(ColourEmbedder()).describe()
    assert retriever(ColourEmbedder(), kind="lexical").describe().startswith("BM25 alone; ")
    dense = retriever(ColourEmbedder(), kind="dense").describe()
    assert dense == "dense; recalls where the cosine by colours >= 0.6, and the score >= 0.7 of the best"


def test_rank_fusion_prefers_what_both_searches_found():
    assert fuse({"lexical": ["a", "b"], "dense": ["b", "c"]}) == [
        ("b", {"lexical": 2, "dense": 1}),
        ("a", {"lexical": 1}),
        ("c", {"dense": 2}),
    ]
    assert fuse({}) == []


def test_what_is_far_less_like_the_question_than_the_best_hit_is_not_recalled():
    texts = "Petra Voss has a red boat in Fernton.", "Petra has a dog.", "Anna Voss has a boat."
    question = "Which red boat does Petra Voss have in Fernton?"
    for margin, found in ((0.7, texts[:1]), (0.0, texts)):
        hits = Retriever(bank_of(*texts), threshold=Threshold(0.1, margin=margin)).search(question)
        assert {hit.chunk.text for hit in hits} == set(found)


def test_coverage_orders_what_bm25_proposes():
    bank = bank_of(
        "Petra has a dog, a dog, a dog and a boat.", "Petra Voss has a boat.", "Anna Voss saw Petra on a boat."
    )
    hits = Retriever(bank).search("Which boat does Petra Voss have?")
    assert hits[0].chunk.text == "Petra Voss has a boat."
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


CHINESE = ("阿达的柜子密码是4417，柜子在二楼。", "灯塔建于一九一二年，有九十四级台阶。", "今天的天气很好，我们去散步。")


@pytest.mark.parametrize(
    ("question", "found"),
    [("阿达的柜子密码是多少？", CHINESE[:1]), ("灯塔有几级台阶？", CHINESE[1:2]), ("首都在哪里？", ())],
)
def test_chinese_questions(question, found):
    assert [hit.chunk.text for hit in Retriever(bank_of(*CHINESE)).search(question)] == list(found)


def test_other_forms_and_accents_are_found():
    bank = bank_of("Ada moved to Paris.", "Zoë's café opens at 6:30.")
    assert Retriever(bank).search("When did Ada move?")[0].chunk.text == "Ada moved to Paris."
    assert Retriever(bank).search("When does ZOE's cafe open?")[0].chunk.text == "Zoë's café opens at 6:30."


def test_what_is_forgotten_between_search_and_look_up_is_left_out(monkeypatch):
    bank = bank_of(*TEXTS)
    search_text = bank.search_text

    def search_then_forget(query, limit):
        found = search_text(query, limit)
        bank.forget([found[0][0]])
        return found

    monkeypatch.setattr(bank, "search_text", search_then_forget)
    hits = Retriever(bank).search("How many steps has the tower of Port Ellery?")
    assert [hit.chunk.text for hit in hits] == [TEXTS[1]]


def test_an_embedder_may_bring_its_own_threshold():
    embedder = ColourEmbedder()
    embedder.min_cosine = 0.25
    assert "cosine by colours >= 0.25" in retriever(embedder).describe()
    assert "cosine by colours >= 0.9" in retriever(embedder, threshold=Threshold(cosine=0.9)).describe()


def test_update_embeds_each_chunk_once():
    found = Retriever(bank_of(*TEXTS), ColourEmbedder())
    assert found.update() == len(TEXTS)
    assert found.update() == 0
    assert Retriever(bank_of(*TEXTS)).update() == 0


def test_wrong_arguments():
    with pytest.raises(InputError, match="'fuzzy' -> use one of hybrid, lexical, dense"):
        retriever(kind="fuzzy")
    with pytest.raises(InputError, match="has no embedder"):
        retriever(kind="dense")


def test_a_chunk_that_goes_meanwhile_gives_its_place_to_the_next(monkeypatch):
    found = retriever()
    first, second = found.search("Port Ellery", limit=2)
    read = found.bank.get

    def get(ids):
        if first.chunk.id in ids:
            raise UnknownChunk("gone", "look elsewhere")
        return read(ids)

    monkeypatch.setattr(found.bank, "get", get)
    assert [hit.chunk.id for hit in found.search("Port Ellery", limit=1)] == [second.chunk.id]


def test_without_the_best_hit_the_margin_is_measured_against_the_next():
    found = Retriever(bank_of("Petra Voss keeps a big red boat.", "Petra has a red boat with big sails."))
    question = "Which big red boat does Petra Voss keep?"
    (best,) = found.search(question)
    others = found.search(question, without=[best.chunk.id])
    assert others
    assert best.score * found.threshold.margin > others[0].score >= found.threshold.coverage


def test_two_things_at_once_have_both_ended_when_one_fails():
    ended = []

    def fails():
        raise ValueError("here")

    def slow():
        time.sleep(0.05)
        ended.append("there")

    with pytest.raises(ValueError, match="here"):
        at_once(fails, slow)
    assert ended == ["there"]
    with pytest.raises(ValueError, match="here"):
        at_once(lambda: None, fails)
    assert at_once(lambda: 1, lambda: 2) == (1, 2)
