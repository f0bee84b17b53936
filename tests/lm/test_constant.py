"""A constant prefix is computed once, anew when the weights change, and always where gradients are asked for."""

from __future__ import annotations

import torch

from remanence.lm.load import load


def test_a_constant_is_kept_until_the_weights_change():
    lm = load("tiny")
    ids = [*lm.bos, *lm.encode("Reference:")]
    with torch.inference_mode():
        first = lm.constant(ids)
        assert lm.constant(ids) is first
        assert lm.constant(ids[:3]) is not first
    with torch.no_grad():
        lm.model.model.embed_tokens.weight += 0.1
        changed = lm.constant(ids)
    assert not torch.equal(changed[0].key_BGMD, first[0].key_BGMD)
    assert set(changed) == set(range(lm.dims.num_layers))


def test_gradients_flow_through_a_constant():
    lm = load("tiny")
    ids = [*lm.bos, *lm.encode("Reference:")]
    with torch.no_grad():
        kept = lm.constant(ids)
    made = lm.constant(ids)
    torch.testing.assert_close(made[1].value_BGMD, kept[1].value_BGMD)
    made[1].value_BGMD.sum().backward()
    assert lm.model.model.embed_tokens.weight.grad.abs().sum() > 0
