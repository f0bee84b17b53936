"""What all tests share: the repository on the path, one thread, warnings of third parties that are not ours to fix."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network
sys.path.insert(0, str(Path(__file__).parent.parent))  # `from tests.reference import ...` in importlib mode

THIRD_PARTY_WARNINGS = (
    r"ignore:`torch\.jit\.script(_method)?` is deprecated:DeprecationWarning",  # transformers 4.57, DeBERTa
)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    for warning in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", warning)
