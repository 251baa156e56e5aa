"""The config as the train loop sees it, and what may change in it when a run goes on."""

import dataclasses
import fractions
import functools
import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import ml_collections

from vit_jax_mixer import specs
from vit_jax_mixer.specs import Count, Share, Within

Section = Mapping[str, Any]
_FREE = ("parallel", "loader", "log_every", "profile", "debug_nans", "writers", "log_gradient_norms")
# Fields that earlier runs do not have, and what those did.
_EARLIER = {
    "init": "",
    "sharpness": "",
    "task.class_weights": "",
    "optim.warmup": "from_zero",
    "optim.noise": "",
    "optim.rates": "",
    "optim.layer_decay": 1.0,
    "optim.clip_norm_of": "all",
    "optim.decay": "",
    "optim.hold": "",
    "optim.hold_steps": 0,
    "early_stopping.metric": "",
    "early_stopping.patience": 10,
    "early_stopping.min_delta": 0.0,
    "plateau.metric": "",
    "plateau.patience": 3,
    "plateau.min_delta": 0.0,
    "plateau.factor": 0.1,
    "data.balance": "",
    "data.cache": "none",
    "data.cache_mib": 1024,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A run, with one attribute for each top-level field; ``configs/common.py`` says what each is."""

    seed: Annotated[int, Within(0, 2**32 - 1)]  # JAX reads no more of it
    steps: Count
    batch_size: Count
    accum_steps: Count
    parallel: str
    init_from: str
    init_resize: str
    ema_decay: Share
    on_not_finite: str
    debug_nans: bool
    profile: str
    task: Section
    model: Section
    data: Section
    loader: Section
    optim: Section
    log_every: Count
    eval_every: Count
    eval_batch_size: Count
    checkpoint: Section
    # Which earlier runs do not have:
    writers: str = ""
    init: str = ""
    sharpness: str = ""
    log_gradient_norms: bool = False
    early_stopping: Section = dataclasses.field(default_factory=dict)
    plateau: Section = dataclasses.field(default_factory=dict)
    # No field of a config: all of them as they were given, if lengths count epochs that are no steps yet.
    epochs: Section = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.skips  # what is wrong with it is said at once

    @functools.cached_property
    def skips(self) -> int:
        """How many steps may be skipped because something in them is not finite."""
        return specs.build({"stop": lambda: 0, "skip": _skip}, self.on_not_finite, "config.on_not_finite")

    def evaluates_after(self, step: int, every: int = 1) -> bool:
        """Say whether there is an evaluation after ``step`` updates, and one of those that come ``every`` so many."""
        return self.data.get("eval") != "" and (step % (self.eval_every * every) == 0 or step == self.steps)

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Config":
        """Take a ConfigDict; an unknown or missing field is a `UserError`."""
        return cls.of_fields(_resolved(config), "config")

    @classmethod
    def of_fields(cls, fields: Section, where: str) -> "Config":
        """Take the fields. Where lengths count epochs, the steps wait for the data: see `in_steps`."""
        steps = in_steps(fields, 0)
        return specs.call(cls, steps, where, epochs=fields if steps != fields else {})

    def in_steps(self, examples: int) -> "Config":
        """Return it with lengths in steps, where they count epochs of so many training examples."""
        if not self.epochs:
            return self
        found = specs.call(Config, in_steps(self.epochs, examples), "config", epochs={})
        changed = [name for name in self.epochs if getattr(found, name) != self.epochs[name]]
        return dataclasses.replace(self, epochs={}, **{name: getattr(found, name) for name in changed})


# --- Lengths in epochs ---

_LENGTHS = re.compile(r"(\w+_)?(steps|every)")  # names of fields that count steps
_EPOCHS = re.compile(r"(\d+(?:\.\d+)?) epochs?")
_IN_SPECS = re.compile(rf"(['\"]){_EPOCHS.pattern}\1")


def is_length(name: str, value: Any) -> bool:
    """Say whether a field counts steps, and its value epochs, as ``eval_every`` and '2 epochs'."""
    return isinstance(value, str) and bool(_LENGTHS.fullmatch(name) and _EPOCHS.fullmatch(value))


def in_steps(fields: Section, examples: int) -> dict[str, Any]:
    """Return a config's fields with lengths in steps, rounded up, where they count epochs of so many examples.

    So are those in ``optim.schedule``, as ``cosine(decay_steps='5 epochs')``. 0 examples are not known yet: then an
    epoch is a step.
    """
    size = fields.get("batch_size")
    per_epoch = fractions.Fraction(examples, size) if examples and isinstance(size, int) and size > 0 else 1
    steps = lambda epochs: math.ceil(fractions.Fraction(epochs) * per_epoch)

    def replaced(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: replaced(inner, one) for inner, one in value.items()}
        if is_length(name, value):
            return steps(value.split()[0])
        if name == "schedule" and isinstance(value, str):
            return _IN_SPECS.sub(lambda match: str(steps(match[2])), value)
        return value

    return {name: replaced(name, value) for name, value in fields.items()}


def _resolved(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the fields, where a metric names its split, as that of ``data.eval`` if it names none."""
    fields = config.to_dict()
    split = fields.get("data", {}).get("eval")
    for section, field in (("checkpoint", "best"), ("early_stopping", "metric"), ("plateau", "metric")):
        name = fields.get(section, {}).get(field)
        if isinstance(split, str) and isinstance(name, str) and name and "/" not in name:
            direction, _, metric = name.rpartition(" ")  # as in 'min skill'
            fields[section][field] = f"{direction} {split}/{metric}".strip() if split else ""
    return fields


def _skip(steps: Annotated[int, Within(0, 2**31 - 1)]) -> int:
    return steps


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the config as it comes back from JSON."""
    return json.loads(json.dumps(_resolved(config), default=str))


def changes(old: Section, new: Section) -> list[str]:
    """Return a phrase for each field in which a run that goes on differs from what it was before.

    What makes no step another one may differ: how a run is computed (``parallel``, ``loader``), what is
    told of it (``log_every``, ``log_gradient_norms``, ``writers``, ``profile``, ``debug_nans``), and, where the
    learning rate stays constant after its warm-up, the number of ``steps``: no schedule reads it then.
    """
    optims = [one.get("optim") for one in (old, new)]
    constant = all(isinstance(optim, Mapping) and optim.get("schedule") == "constant" for optim in optims)
    free = {*_FREE, "steps"} if constant else _FREE
    compared = ({name: value for name, value in one.items() if name not in free} for one in (old, new))
    return differences(*compared, absent=_EARLIER)


def differences(old: Section, new: Section, absent: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """Return one phrase for each field that differs, as ``batch_size was 64 and is 128``.

    ``absent`` has the values of fields, by name, that one of the two may lack.
    """
    both = {**absent, **flat(old)}, {**absent, **flat(new)}
    names = sorted(both[0].keys() | both[1].keys())
    values = ((name, *(repr(fields[name]) if name in fields else "absent" for fields in both)) for name in names)
    return [f"{name} was {was:.200} and is {now:.200}" for name, was, now in values if was != now]


def flat(section: Section, prefix: str = "") -> dict[str, Any]:
    """Return the fields of all sections by their names, as ``optim.learning_rate``."""
    fields: dict[str, Any] = {}
    for name, value in section.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return fields
