"""The trainer of each class of recipes."""

from __future__ import annotations

from typing import Any

from remanence.train.core.stages import Trainer
from remanence.train.finetune import chat, retrofit
from remanence.train.memory3 import nano, sequences
from remanence.train.mplus import stages
from remanence.train.recipes.chat import ChatRecipe
from remanence.train.recipes.nano import NanoRecipe
from remanence.train.recipes.nano_mplus import MPlusRecipe
from remanence.train.recipes.retrofit import RetrofitRecipe
from remanence.train.recipes.sequences import SequenceRecipe

TRAINERS: dict[type, Trainer[Any, Any]] = {
    NanoRecipe: nano.TRAINER,
    SequenceRecipe: sequences.TRAINER,
    MPlusRecipe: stages.TRAINER,
    ChatRecipe: chat.TRAINER,
    RetrofitRecipe: retrofit.TRAINER,
}
