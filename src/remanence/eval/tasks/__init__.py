"""Evaluation tasks. The folder is the registry: a task is one file with one frozen dataclass."""

from __future__ import annotations

import importlib
import pkgutil

from remanence.eval.tasks.base import EvalSet, Example, Task

__all__ = ["EvalSet", "Example", "Task", "known"]


def known() -> dict[str, type[Task]]:
    """The tasks in this folder, by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {task.name: task for task in sorted(Task.__subclasses__(), key=lambda task: task.name)}
