"""The config as the train loop sees it, and its record in the workdir."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError

Section = Mapping[str, Any]
_HOW = ("parallel", "loader")


@dataclasses.dataclass(frozen=True)
class Config:
    """A run, with one attribute for each top-level field; ``configs/common.py`` says what each is."""

    seed: int
    steps: int
    batch_size: int
    accum_steps: int
    parallel: str
    init_from: str
    init_resize: str
    ema_decay: float
    on_not_finite: str
    debug_nans: bool
    profile: str
    task: Section
    model: Section
    data: Section
    loader: Section
    optim: Section
    log_every: int
    eval_every: int
    eval_batch_size: int
    checkpoint: Section

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"config.seed is {self.seed}; it must be 0 or more.")
        for name in ("steps", "accum_steps", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise UserError(f"config.{name} is {getattr(self, name)}; it must be 1 or more.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"config.ema_decay is {self.ema_decay}; it must be from 0 to less than 1.")
        if self.skips < 0:
            raise UserError(f"config.on_not_finite is {self.on_not_finite!r}; it can skip 0 steps or more.")

    @functools.cached_property
    def skips(self) -> int:
        """How many steps may be skipped because something in them is not finite."""
        ways = {"stop": lambda: 0, "skip": lambda steps: int(steps)}
        return specs.build(ways, self.on_not_finite, "config.on_not_finite")

    def evaluates_after(self, step: int) -> bool:
        """Say whether there is an evaluation after ``step`` updates."""
        return step % self.eval_every == 0 or step == self.steps

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Config":
        """Take a ConfigDict; an unknown or missing field is a `UserError`."""
        return specs.call(cls, config.to_dict(), "config")


def check_unchanged(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Compare with the workdir's ``config.json``, if there is one.

    ``parallel`` and ``loader`` may differ: they say how a run is computed, so that it can go on elsewhere.

    Raises:
        UserError: the config differs; the sentence names the fields.
    """
    path = workdir / "config.json"
    what = lambda text: {name: value for name, value in json.loads(text).items() if name not in _HOW}
    try:
        changed = differences(what(path.read_text()), what(_text(config))) if path.exists() else []
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); pass --change_config to go on with the config given.") from error
    if changed:
        raise UserError(
            f"{workdir} was begun with another config: {'; '.join(changed)}. "
            "Go on with the old values, choose another --workdir, or pass --change_config to go on with the new."
        )


def record(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Write ``config.json`` to the workdir, at once or not at all."""
    if jax.process_index() == 0:
        new = workdir / "config.json.new"
        new.write_text(_text(config))
        new.replace(workdir / "config.json")


def _text(config: ml_collections.ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, default=str) + "\n"


def differences(old: Section, new: Section) -> list[str]:
    """Return one phrase for each field that differs, as ``batch_size was 64 and is 128``."""
    old_fields, new_fields = _flat(old), _flat(new)
    names = sorted(old_fields.keys() | new_fields.keys())
    show = lambda fields, name: repr(fields[name]) if name in fields else "absent"
    return [
        f"{name} was {show(old_fields, name)} and is {show(new_fields, name)}"
        for name in names
        if show(old_fields, name) != show(new_fields, name)
    ]


def _flat(section: Section, prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in section.items():
        fields |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return fields
