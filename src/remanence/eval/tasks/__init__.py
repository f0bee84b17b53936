"""Evaluation tasks: the folder is the registry; a task is one file with one frozen dataclass."""

from __future__ import annotations

import importlib
import pkgutil

from remanence.eval.tasks.base import Exam, Item, Task

__all__ = ["Exam", "Item", "Task", "known"]


def known() -> dict[str, type[Task]]:
    """Every task in this folder by its name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {task.name: task for task in sorted(Task.__subclasses__(), key=lambda task: task.name)}
