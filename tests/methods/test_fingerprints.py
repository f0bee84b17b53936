"""Fingerprints of bundled models and methods are those of the first release: banks and pools written by it open."""

from __future__ import annotations

import pytest

import remanence as rm
from remanence import methods

NANO = {
    "memory3": "4a4f278d1a58e55b02284bce347cbb5f2caa4035a367dec46de7ab24d45be18e",
    "memory3:paper": "5f07665ea71a07c5af308d68b634a572a335f293e08a7a78a6f13238aa17c473",
    "memory3:dense": "f986102545e0238142cc485d757fda9f3ae7f98e3db5279dc618479b4f9d2692",
    "retrieved_text": "32481809c62b66a327f42d82a7a860a9c75e18f62326a319a442c51754362334",
    "full_context": "ddc1ec1d5b5c0c21542462a54a904c65996f91ef14638aaf81580e282a9db88f",
}
NANO_MPLUS = "88af5d9246dd5041fc4a7546666ac925a0f74b7f63b4ddd392d2160c61ed9d37"
POOL = "d388caeefaca5b1cfe05a2b8e69d768e6bb6fdd9d6772c44c0b547898ab22387"


@pytest.fixture(scope="module")
def nano() -> rm.LM:
    return rm.load("nano", device="cpu")


@pytest.mark.parametrize("name", NANO)
def test_a_method_for_nano(nano: rm.LM, name: str):
    assert methods.load(name, nano).fingerprint(nano) == NANO[name]


def test_mplus_and_its_pool():
    lm = rm.load("nano-mplus", device="cpu")
    with rm.Session(lm, None, "mplus") as session:
        assert session.fingerprint == NANO_MPLUS
        assert session._state is not None
        assert session._state.fingerprint == POOL
