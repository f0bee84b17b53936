"""Drop policies: K different places in every layer, and what is worth more stays longer."""

from __future__ import annotations

import pytest
import torch

from remanence.errors import InputError
from remanence.methods.mplus import dropping
from tests.methods.mplus.helpers import small, small_lm

LM = small_lm()
METHOD = small(LM)
L, N, K = 2, METHOD.config.pool_rows, METHOD.config.write_rows


def full(seed: int, row_LNC: torch.Tensor | None = None) -> dropping.Full:
    generator = torch.Generator().manual_seed(7)
    drawn_LNC, fresh_LKC = (torch.randn(L, n, 64, generator=generator) for n in (N, K))
    return dropping.Full(
        LM,
        METHOD.modules(LM),
        drawn_LNC if row_LNC is None else row_LNC,
        fresh_LKC,
        torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("name", dropping.POLICIES)
def test_k_places_of_every_layer_leave_and_the_generator_decides(name):
    with torch.no_grad():
        dropped_LK = dropping.policy(name)(full(0))
        again, other = dropping.policy(name)(full(0)), dropping.policy(name)(full(1))
    assert dropped_LK.shape == (L, K)
    assert bool((dropped_LK.diff(dim=1) > 0).all())
    assert 0 <= int(dropped_LK.min()) <= int(dropped_LK.max()) < N
    assert torch.equal(dropped_LK, again)
    assert not torch.equal(dropped_LK, other)


@pytest.mark.parametrize(
    ("name", "worth"),
    [("retrieval", dropping._retrieval_mass), ("attention", dropping._attention_mass)],
)
def test_the_half_that_is_worth_more_leaves_less_often(name, worth):
    with torch.no_grad():
        worth_LN = torch.stack([worth(full(0), layer) for layer in range(L)])
        is_worth_LN = worth_LN > worth_LN.median(1, keepdim=True).values
        drops = [is_worth_LN.gather(1, dropping.policy(name)(full(seed))) for seed in range(60)]
    assert float(torch.stack(drops).float().mean()) < 0.4


def test_attention_mass_is_a_share():
    with torch.no_grad():
        mass_N = dropping._attention_mass(full(0), 1)
    assert mass_N.shape == (N,)
    assert torch.isclose(mass_N.sum(), torch.tensor(1.0), atol=1e-5)


def test_a_row_that_is_written_again_leaves_first():
    rows = full(0).row_LNC.clone()
    rows[:, 4] = full(0).fresh_LKC[:, 2]
    with torch.no_grad():
        gone = [bool((dropping.by_redundancy(full(seed, rows)) == 4).any(1).all()) for seed in range(40)]
    assert sum(gone) > 35, "by lot it would leave both layers once in nine"


def test_an_unknown_policy_is_refused():
    with pytest.raises(InputError, match="oldest"):
        dropping.policy("oldest")
