"""What can be learnt: each file here but those of `_PARTS` is a task of that name; your own is a module of yours."""

import importlib
import pkgutil
from collections.abc import Callable

from vit_jax_mixer import plugins, specs
from vit_jax_mixer.config import Config
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.tasks.base import Aux, Task, TrainState

__all__ = ["Aux", "Task", "TrainState", "create", "creator", "list_tasks"]
_PARTS = ("base", "images", "masking")  # of tasks


def list_tasks() -> list[str]:
    """Return the names that `create` knows."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in _PARTS]


def create(run: Config) -> Task:
    """Build the task that ``config.task.name`` names.

    Raises:
        UserError: an unknown name or field, or weights to begin with that the task would not read.
    """
    fields = dict(run.task)
    name = str(fields.pop("name", ""))
    task = specs.call(creator(name), fields, "config.task", run=run)
    if run.init_from and type(task).load is Task.load:
        raise UserError(f"config.init_from is {run.init_from!r}, which the task {name} does not read; set it to ''.")
    return task


def creator(name: str) -> Callable[..., Task]:
    """Return the function that makes the task of that name, which takes the fields of ``config.task``.

    A name that is none of ours is that of a user's module with such a function ``create``, or ``module:create``.
    """
    if name in list_tasks():
        return importlib.import_module(f"{__name__}.{name}").create
    return plugins.lookup(dict.fromkeys(list_tasks()), name, "config.task.name", alone="create")
