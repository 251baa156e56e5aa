"""The config as the train loop sees it, and its record in the workdir."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vit_jax_mixer import specs
from vit_jax_mixer.errors import UserError

Section = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """A run, with one attribute for each top-level field; ``configs/common.py`` says what each is."""

    seed: int
    steps: int
    batch_size: int
    accum_steps: int
    parallel: str
    init_from: str
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
        for name in ("steps", "accum_steps", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise UserError(f"config.{name} is {getattr(self, name)}; it must be 1 or more.")

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Config":
        """Take a ConfigDict; an unknown or missing field is a `UserError`."""
        return specs.call(cls, config.to_dict(), "config")


def record(config: ml_collections.ConfigDict, workdir: Path, *, resumes: bool, may_change: bool) -> None:
    """Write ``config.json`` to the workdir; a run that resumes must have the config it began with.

    Raises:
        UserError: the config differs from the recorded one; the sentence names the fields.
    """
    path = workdir / "config.json"
    now = json.loads(json.dumps(config.to_dict()))
    if resumes and path.exists() and not may_change:
        changed = differences(json.loads(path.read_text()), now)
        if changed:
            raise UserError(
                f"{workdir} was begun with another config: {'; '.join(changed)}. "
                "Go on with the old values, choose another --workdir, or pass --change_config to go on with the new."
            )
    text = json.dumps(now, indent=2) + "\n"
    if jax.process_index() == 0 and not (path.exists() and path.read_text() == text):
        new = path.with_suffix(".json.new")
        new.write_text(text)
        new.replace(path)


def differences(old: Section, new: Section) -> list[str]:
    """Return one phrase for each field that differs, as ``batch_size was 64 and is 128``."""
    old_fields, new_fields = _flat(old), _flat(new)
    names = sorted(old_fields.keys() | new_fields.keys())
    show = lambda fields, name: repr(fields[name]) if name in fields else "absent"  # noqa: E731
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
