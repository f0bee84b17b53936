"""The bench of recall measures what it says: same references, full length, no answer cut short, one bank."""

from __future__ import annotations

import pytest

from remanence.bench.recall import COLD, DISK, PLAIN, TEXT, WARM, Options, RecallBench, references, run, without_stops
from remanence.errors import InputError
from remanence.lm.load import load


@pytest.fixture(scope="module")
def lm():
    return load("tiny")


@pytest.fixture(scope="module")
def made(lm):
    return run(lm, Options(tokens=66, repeats=1, reference_tokens=100))


def test_every_system_is_measured_in_the_same_figures(made):
    assert set(made["results"]) == {PLAIN, WARM, DISK, COLD, TEXT}
    names = {name for figures in made["results"].values() for name in figures}
    assert all(set(figures) == names for figures in made["results"].values())
    assert all(value > 0 for value in made["ratios"].values())
    assert {"first_token_retrieved_text_over_memory3_warm", "decode_memory3_warm_over_plain"} <= set(made["ratios"])


def test_references_are_read_by_all_and_are_as_long_as_asked(lm, made):
    texts = references(lm, Options(reference_tokens=100))
    assert all(85 < lm.count_tokens(text) <= 100 for text in texts)
    assert len(set(texts)) == 5
    by_system = made["results"]
    assert by_system[WARM]["prompt_tokens"] == by_system[PLAIN]["prompt_tokens"]
    assert by_system[TEXT]["prompt_tokens"] > by_system[PLAIN]["prompt_tokens"] + 5 * 85
    assert by_system[PLAIN]["memory_tokens"] == 0
    assert by_system[WARM]["memory_tokens"] >= 5 * 8
    assert made["conditions"]["references_found_by_search"] == 5


def test_bytes_of_memories(made):
    # 1 layer, keys and values, 2 heads, 8 tokens of width 16 in the bank's two bytes a number
    assert made["results"][WARM]["recalled_bytes"] == 5 * 1 * 2 * 2 * 8 * 16 * 2


def test_cold_writes_memories_and_warm_finds_them(lm, tmp_path):
    bench = RecallBench(lm, tmp_path / "bank", Options(tokens=2, reference_tokens=100))
    try:
        systems = bench.systems()
        assert bench.warm.bank.missing_memories(bench.warm.fingerprint, bench.ids) == []
        bench.warm.bank.drop_memories(bench.warm.fingerprint)
        systems[COLD]()
        assert bench.warm.bank.missing_memories(bench.warm.fingerprint, bench.ids) == []
        assert bench.disk.bank.stats().ram_memories == 0
        systems[DISK]()
        assert bench.disk.bank.stats().ram_memories == 0
    finally:
        bench.close()


def test_no_token_ends_an_answer(lm):
    same = without_stops(lm)
    assert (same.eos, same.model is lm.model) == (frozenset(), True)
    assert lm.eos == {2}
    assert same.fingerprint == lm.fingerprint


@pytest.mark.parametrize("options", [{"tokens": 1}, {"repeats": 0}, {"reference_tokens": 5}])
def test_options_that_measure_nothing_are_refused(options):
    with pytest.raises(InputError):
        Options(**options)


@pytest.mark.parametrize("options", [{"reference_tokens": 200}, {"method": "retrieved_text"}])
def test_what_is_no_memory_is_refused(lm, options):
    with pytest.raises(InputError):
        run(lm, Options(tokens=2, repeats=1, **options))
