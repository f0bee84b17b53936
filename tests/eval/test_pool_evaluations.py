"""The evaluations of an M+ pool on a tiny model: what they count is right, and bad input is refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from remanence.errors import InputError
from remanence.eval import ltm_recall, perplexity, retention
from remanence.eval.metrics import exact_match
from remanence.eval.plots import draw_retention
from remanence.eval.readers import PoolReader, TextReader
from remanence.eval.streams import draw_facts, other_texts, short_answers
from remanence.lm.decode import decode
from remanence.methods.base import text_layout
from remanence.methods.mplus.bank_pool import BankPool
from remanence.methods.mplus.method import MPlus, MPlusConfig
from remanence.methods.mplus.rankers import by_write, trained
from remanence.methods.mplus.retriever import write_scores
from remanence.session import Session
from tests.methods.mplus.helpers import SMALL, small, small_lm, small_trained

BOOK = "It was a bright cold morning, and nobody in the whole street had thought of closing the door of the mill. " * 3
SQUAD = [
    {
        "context": "The ferry to Oban leaves at nine.",
        "qas": [{"question": "When does the ferry leave?", "answers": [{"text": "at nine"}]}],
    },
    {
        "context": "Mara keeps bees behind the old school house.",
        "qas": [
            {"question": "Where?", "answers": [{"text": "behind the old school house"}]},
            {"question": "Who keeps bees?", "answers": [{"text": "Mara"}]},
        ],
    },
]


@pytest.fixture(scope="module")
def lm():
    lm = small_trained()
    lm.settings["mplus"]["capacity_rows"] = 4000
    return lm


@pytest.fixture
def books(tmp_path: Path) -> Path:
    file = tmp_path / "books.jsonl.gz"
    text = "\n\n".join(f"{number}. {BOOK}" for number in range(6))
    file.write_bytes(gzip.compress(json.dumps({"text": text}).encode()))
    return file


def no_bar(label: str, total: int):
    import contextlib

    return contextlib.nullcontext(lambda steps: None)


def test_other_text_fills_chunks_and_goes_on_for_ever(lm, books):
    for source in (books, None):
        chunks = list(islice(other_texts(source, 0, lm.count_tokens, 24), 400))
        assert all(size == lm.count_tokens(text) <= 24 for text, size in chunks)
        assert sum(size for _, size in chunks) > 300 * 12
    generated = [text for text, _ in islice(other_texts(None, 0, lm.count_tokens, 120), 300)]
    assert len(set(generated)) == 300, "the generator does not repeat itself"


def test_facts_are_the_generators_or_short_answers_of_a_file(lm, tmp_path: Path):
    assert len(draw_facts(None, 5, 0, lm.count_tokens, 24)) == 5
    file = tmp_path / "squad.json"
    file.write_text(json.dumps(SQUAD))
    found = draw_facts(file, 5, 0, lm.count_tokens, 200)
    assert {item.question for item in found} == {"When does the ferry leave?", "Who keeps bees?"}
    file.write_text(json.dumps(SQUAD[:0]))
    with pytest.raises(InputError, match="no question with a short answer"):
        draw_facts(file, 5, 0, lm.count_tokens, 200)


def test_retention_asks_every_system_at_every_mark(lm, books, tmp_path: Path):
    options = retention.Options(tokens=400, every=200, n=3, max_tokens=3, distractors=books)
    result = retention.run(lm, options, no_bar, tmp_path)
    assert set(result["systems"]) == set(retention.SYSTEMS)
    for name, figures in result["systems"].items():
        tokens = [at for at, _ in figures["curve"]]
        assert tokens[0] == 0
        assert tokens == sorted(set(tokens))
        assert name == "full_context" or (tokens[1] >= 200 and tokens[2] >= 400)
        assert all(0 <= share <= 1 for _, share in figures["curve"])
        assert len(figures["seconds_per_1000_tokens"]) == len(figures["resident_bytes"]) == 2
    picture = tmp_path / "curve.png"
    draw_retention(result, picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="no system is called 'mplas'"):
        replace(options, systems=("mplas",))
    with pytest.raises(InputError, match="every is 0"):
        replace(options, every=0)


def test_only_what_the_base_model_reads_is_asked(lm, tmp_path: Path):
    """Of a file whose answers are, for half of the questions, what the model says with the passage before its eyes."""
    file, questions = tmp_path / "squad.json", ("When?", "Which one leaves then?")

    def write(*answers: str) -> list[str]:
        entries = [{"question": questions[i % 2], "answers": [{"text": answer}]} for i, answer in enumerate(answers)]
        contexts = [f"The ferry number {number} leaves at nine." for number in range(3)]
        file.write_text(json.dumps([{"context": c, "qas": entries[2 * i : 2 * i + 2]} for i, c in enumerate(contexts)]))
        return list(answers)

    wrong = write(*["Oban pier"] * 6)
    facts = [fact for facts in short_answers(file, lm.count_tokens, small(lm).reference_tokens()) for fact in facts]
    said = [" ".join(text.split()[:3]) for text in TextReader(lm, 3).right_after("full_context", facts, 1)]
    assert all(said), "an empty answer would match nothing"
    golds = write(wrong[0], said[1], wrong[2], said[3], wrong[4], said[5])
    options = retention.Options(40, 40, systems=("mplus",), max_tokens=3, data=file, answerable=True)
    result = retention.run(lm, options, no_bar, tmp_path)
    right = [i for i, (text, gold) in enumerate(zip(said, golds, strict=True)) if exact_match(text, gold)]
    assert right == [1, 3, 5]
    assert result["conditions"]["answerable"] == {"asked_of_the_base_model": 6, "kept": len(right)}
    assert result["n"] == len(right)
    assert result["conditions"]["passages"] == 3
    with pytest.raises(InputError, match="add --data"):
        replace(options, data=None)
    write(*wrong)
    with pytest.raises(InputError, match="answers none of 6 questions"):
        retention.run(lm, options, no_bar, tmp_path)


def test_a_question_is_answered_as_a_session_answers_it(lm, tmp_path: Path):
    method = small(lm)
    kept = draw_facts(None, 3, 0, lm.count_tokens, 24)
    reader = PoolReader(lm, method, 0, tmp_path / "rows", max_tokens=6)
    with Session(lm, None, method) as session:
        for item in kept:
            for chunk in item.chunks:
                reader.write([chunk])
                session.write(chunk)
        asked = [session.generate(item.question, max_tokens=6, stop=["\n"]).text for item in kept]
        assert reader.ask("mplus", kept, 2) == asked


def test_recall_is_all_for_the_oracle_and_about_chance_for_lots(lm, books, tmp_path: Path):
    options = ltm_recall.Options(tokens=300, n=4, distractors=books, drops=("random", "redundancy"))
    table = ltm_recall.run(lm, options, no_bar, tmp_path)["table"]
    assert len(table) == 2 * len(ltm_recall.CHOICES)
    by_choice = {row["choice"]: row for row in table if row["drop"] == "random"}
    assert by_choice["oracle"]["recall"] == max(row["recall"] for row in table) > 0.4, "a fact has more rows than slots"
    assert by_choice["recent"]["recall"] < 0.2
    assert abs(by_choice["random"]["recall"] - by_choice["random"]["chance"]) < 0.3
    with pytest.raises(InputError, match="there is no 'best'"):
        replace(options, choices=("best",))
    with pytest.raises(InputError, match="no retriever can be read"):
        ltm_recall.run(lm, replace(options, losses=("balanced.safetensors",)), no_bar, tmp_path)


def test_perplexity_of_the_base_is_its_own_loss(lm, books, tmp_path: Path):
    options = perplexity.Options(n=5, fill_tokens=60, data=books)
    result = perplexity.run(lm, options, no_bar, tmp_path)
    assert {"base", "fresh_pool", "full_pool", perplexity.ALWAYS} == set(result["systems"])
    assert len({figures["tokens"] for figures in result["systems"].values()}) == 1
    assert result["ratios"]["full_pool_loss_nats"] != result["ratios"]["fresh_pool_loss_nats"]
    ids = [lm.encode(text) for text, _ in islice(other_texts(books, 0, lm.count_tokens, 24), 5)]
    losses = []
    for text in ids:
        with torch.no_grad():
            logits_TV = lm.forward(torch.tensor([[*lm.bos, *text]]))[0]
        lead, start = len(lm.bos), max(1, min(32, len(text) // 2))
        losses += torch.nn.functional.cross_entropy(
            logits_TV[lead + start - 1 : lead + len(text) - 1], torch.tensor(text[start:]), reduction="none"
        ).tolist()
    assert result["systems"]["base"]["loss_nats"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_whole_writes_are_ranked_by_the_best_row_for_each_token():
    """`by_write` over blocks of a real pool equals `write_scores` over writes laid side by side, and a plain loop."""
    lm = small_lm()
    method = MPlus(MPlusConfig(**{**SMALL, "ranked": "writes", "short": "own"}), small(lm).modules(lm))
    pool = method.fresh(lm)
    for length in (9, 3, 24, 5, 12, 2, 20, 7, 6):
        pool = method.add(lm, pool, list(range(60, 60 + length)))
    prefix = method.prefix(lm, [pool])
    with torch.no_grad():
        lm.forward(torch.tensor([[70, 71, 90]]), prefix, role="read")
    layer, K = 1, method.config.write_rows
    hidden = {}

    def keep(asked, pool):
        hidden[asked.layer] = asked
        return by_write(K)(asked, pool)

    with torch.no_grad():
        lm.forward(torch.tensor([[70, 71, 90]]), method.prefix(lm, [pool], None, keep), role="read")
        asked = hidden[layer]
        score_M = by_write(K)(asked, pool)[0]
        query_TE = asked.modules.query[layer](asked.hidden_BTC)[0]
        key_ME = torch.cat(list(pool.long.blocks.keys(layer)))
        rows_M = trained(asked, pool)[0]
    write_M = (pool.long.blocks.born(layer) - 1) // K
    assert (score_M[write_M < 0] == -torch.inf).all(), "rows of the first pool are nobody's text"
    born_M = pool.long.blocks.born(layer)
    assert (born_M <= 0).any()
    assert (born_M[prefix.chosen[layer][0]] > 0).all()
    for write in write_M[write_M >= 0].unique():
        mine = write_M == write
        slow = (query_TE @ key_ME[mine].T).sigmoid().amax(1).mean()
        torch.testing.assert_close(score_M[mine].float(), slow.expand(int(mine.sum())), rtol=0, atol=1e-5)
        seen_GK = torch.zeros(1, K, dtype=torch.bool)
        seen_GK[0, : int(mine.sum())] = True
        key_GKE = torch.zeros(1, K, key_ME.shape[1])
        key_GKE[0, : int(mine.sum())] = key_ME[mine]
        torch.testing.assert_close(write_scores(query_TE[None], key_GKE, seen_GK)[0, 0], slow, rtol=0, atol=1e-6)
        order = score_M[mine].argsort()
        assert torch.equal(order, rows_M[mine].argsort()), "of one write the better rows come first"


def test_what_the_pool_is_not_about_is_left_to_the_base(lm, books, tmp_path: Path):
    method = small(lm, ranked="writes")
    kept = draw_facts(None, 4, 0, lm.count_tokens, 24)
    reader = PoolReader(lm, method, 0, None, max_tokens=4)
    for item in kept:
        reader.write(item.chunks)
    prompts = [reader.prompt(item.question) for item in kept]
    together = method.relevance(lm, reader.pool, prompts)
    alone = [method.relevance(lm, reader.pool, [prompt])[0] for prompt in prompts]
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(0 < score < 1 for score in alone)
    assert method.relevance(lm, method.fresh(lm), prompts[:1]) == [0.0], "a fresh pool is about nothing"
    edge = sorted(alone)[2]
    picky = MPlus(replace(method.config, least_relevance=edge), method.modules(lm))
    assert picky.knows(lm, reader.pool, prompts) == [score >= edge for score in together]
    reader.method = MPlus(replace(method.config, least_relevance=1.0), method.modules(lm))
    plain = reader.ask("mplus", kept, 4)
    with Session(lm, None, "retrieved_text") as session:
        assert plain == [session.generate(item.question, max_tokens=4, stop=["\n"]).text for item in kept]
    with Session(lm, None, reader.method) as session:
        session.write(kept[0].chunks[0])
        reply = session.generate(kept[0].question, max_tokens=4, stop=["\n"])
        assert (reply.text, list(reply.recalled)) == (plain[0], [])
        half = MPlus(
            replace(method.config, least_relevance=session_edge(method, lm, session, kept)), method.modules(lm)
        )
        session.method = half
        mixed = session.generate_batch([item.question for item in kept], max_tokens=4, stop=["\n"])
        assert any(reply.recalled for reply in mixed)
        assert any(not reply.recalled for reply in mixed)
        for item, reply in zip(kept, mixed, strict=True):
            assert reply.text == session.generate(item.question, max_tokens=4, stop=["\n"]).text
    result = perplexity.run(lm_with(lm, least_relevance=1.0), perplexity.Options(3, 60, data=books), no_bar, tmp_path)
    assert result["ratios"]["full_pool_loss_nats"] == pytest.approx(1.0, abs=1e-6)


def session_edge(method: MPlus, lm, session: Session, kept) -> float:
    """A threshold that half of the questions pass."""
    assert isinstance(session._state, BankPool)
    prompts = [lm.render([{"role": "user", "content": item.question}])[len(lm.bos) :] for item in kept]
    return sorted(method.relevance(lm, session._state.update().pool, prompts))[2]


def lm_with(lm, **changes):
    other = small_trained()
    other.settings = {"mplus": {**lm.settings["mplus"], **changes}}
    return other


def test_a_short_chunk_makes_rows_of_its_own_alone():
    lm = small_lm()
    method = MPlus(MPlusConfig(**{**SMALL, "short": "own"}), small(lm).modules(lm))
    like = small(lm)
    ids = [70, 71, 72]
    one, other = method.add(lm, method.fresh(lm), ids), like.add(lm, like.fresh(lm), ids)
    assert torch.equal(one.row_LNC[:, -3:], other.row_LNC[:, -3:])
    assert one.clock == other.clock == method.config.write_rows
    assert torch.equal(one.born_LN[:, -3:], other.born_LN[:, -3:])
    assert one.long.blocks.num_rows == 3
    assert other.long.blocks.num_rows == method.config.write_rows


def test_text_that_went_through_once_is_answered_as_text_in_the_context(lm):
    kept = draw_facts(None, 3, 0, lm.count_tokens, 24)
    reader = TextReader(lm, max_tokens=5)
    for item in kept:
        reader.write(item.chunks)
    found = reader.ask("full_context", kept, 2)
    for item, answer in zip(kept, found, strict=True):
        question = lm.render([{"role": "user", "content": item.question}])
        ids = text_layout(lm, [chunk for k in kept for chunk in k.chunks], question)
        *_, rows = decode(lm, [ids], max_tokens=5, stop=("\n", *lm.stop))
        assert rows[0].text.strip() == answer
    reader.room = 10
    assert reader.ask("full_context", kept, 2) is None
    assert len(reader.ask("sliding_window", kept, 2)) == 3
