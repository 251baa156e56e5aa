"""What can be learnt: each file here but `base` is a task of that name."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from vit_jax_mixer import specs
from vit_jax_mixer.tasks.base import Aux, Task, TrainState

__all__ = ["Aux", "Task", "TrainState", "create", "list_tasks"]


def list_tasks() -> list[str]:
    """Return the names that `create` knows."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"]


def create(task: Mapping[str, Any], *, model: Mapping[str, Any], data: Mapping[str, Any], init_from: str) -> Task:
    """Build the task that ``task['name']`` names, from the config's sections.

    Raises:
        UserError: an unknown name or field, in one sentence.
    """
    fields = dict(task)
    name = fields.pop("name", "")
    specs.lookup(dict.fromkeys(list_tasks()), name, "config.task.name")
    module = importlib.import_module(f"{__name__}.{name}")
    return specs.call(module.create, fields, "config.task", model=model, data=data, init_from=init_from)
