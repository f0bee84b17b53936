from __future__ import annotations

QUICK = ("--tokens", "2", "--repeats", "1", "--reference-tokens", "64")


def test_recall_as_json_and_as_a_table(call):
    made = call("bench", "recall", *QUICK, "--json", model=True).json
    assert (made["bench"], made["conditions"]["generated_tokens"]) == ("recall", 2)
    shown = call("bench", "recall", *QUICK, model=True)
    assert (shown.code, shown.err) == (0, "")
    assert "memory3_warm" in shown.out


def test_bad_input_is_one_line_and_code_2(call):
    outcome = call("bench", "recall", "--repeats", "0", model=True)
    assert outcome.code == 2
    assert outcome.err.startswith("error: repeats is 0")


def test_bank(call):
    made = call("bench", "bank", "--rows", "20", "--queries", "2", "--json").json
    assert (made["bench"], made["conditions"]["rows"]) == ("bank", 20)
    assert call("bench", "bank", "--rows", "0").code == 2


def test_start(call):
    shown = call("bench", "start", "--repeats", "1", model=True)
    assert (shown.code, shown.err) == (0, "")
    for words in ("bank list", "import torch", "imports (seconds)", "pyarrow"):
        assert words in shown.out
    assert call("bench", "start", "--against", ".").err.startswith("error: '.' holds no package remanence")
