from __future__ import annotations

from remanence.lm.folders import ASSETS


def test_what_would_go_is_shown_and_offline_nothing_goes(call):
    outcome = call("push", str(ASSETS / "nano"), "ada/nano", "--dry-run", "--json")
    assert (outcome.code, outcome.json["address"], outcome.json["public"]) == (0, None, False)
    assert "embedder.safetensors" in outcome.json["files"]
    refused = call("push", str(ASSETS / "nano"), "ada/nano")
    assert (refused.code, refused.out) == (2, "")
    assert "HF_HUB_OFFLINE" in refused.err
    assert call("push", str(ASSETS / "nano"), "nano", "--dry-run").code == 2
