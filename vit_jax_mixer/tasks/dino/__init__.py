"""DINO: features without labels, from a teacher that is a running mean of its student.

Caron et al. 2021, arXiv 2104.14294. Two large crops of an image go to both, small ones to the student alone, which
learns to answer as the teacher does on another crop. What users get is the teacher without its head.

An all-MLP model has one number of tokens, so small crops need a way in. ResMLP's authors trained it with DINO
(arXiv 2105.03404, table 3) and published none; ``local`` names the two here. Lengths are in updates, where DINO's
code has epochs.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from vit_jax_mixer import models, probes, specs
from vit_jax_mixer.config import Config
from vit_jax_mixer.data import images
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models.dino_head import DinoHead
from vit_jax_mixer.specs import Count, Rate, Share, Within
from vit_jax_mixer.tasks.dino.answers import Settings, Temperature
from vit_jax_mixer.tasks.dino.task import LARGE, SECOND, SMALL, Dino
from vit_jax_mixer.tasks.images import Crops, ImageData, describe, image_data

LOCAL = ("resize", "interpolate")


def create(
    run: Config,
    second_ops: str,
    local_ops: str,
    local_crops: Annotated[int, Within(0, 1000)],
    local: str,
    head: Mapping[str, Any],
    momentum: Rate,
    teacher_temperature: Temperature,
    warmup_temperature: Temperature,
    warmup_temperature_steps: Annotated[int, Within(0)],
    student_temperature: Temperature,
    centre_momentum: Share,
    probe: str,
    probe_examples: Count,
) -> "Dino":
    """Build the task from ``config.task``, ``model``, ``data`` and ``init_from``; `configs/dino.py` has the fields."""
    specs.lookup(dict.fromkeys(LOCAL), local, "config.task.local")
    if run.ema_decay:
        raise UserError(
            f"config.ema_decay is {run.ema_decay}, but the teacher of DINO is a running mean already; set it to 0."
        )
    first = images.parse(run.data["train_ops"], "config.data.train_ops")
    crops = {LARGE: Crops(first, 1 if second_ops else 2)}
    if second_ops:
        crops[SECOND] = Crops(images.parse(second_ops, "config.task.second_ops"), 1)
    if local_crops:
        crops[SMALL] = Crops(images.parse(local_ops, "config.task.local_ops"), local_crops)
    data = image_data(run, labels=False, crops=crops)
    _check_sizes(data)
    probing = probes.parse(probe, "config.task.probe")
    if probing and not (data.eval and data.num_classes):
        raise UserError(
            f"config.task.probe is {probe!r}, but there are no labels to try it with (config.data.eval is "
            f"{data.eval_split!r}, and the data have {data.num_classes} classes); set it to ''."
        )
    backbone = specs.call(models.create, run.model, "config.model", num_classes=0)
    made = specs.call(DinoHead, head, "config.task.head", parent=None, name=None)
    settings = Settings(
        momentum,
        teacher_temperature,
        warmup_temperature,
        warmup_temperature_steps,
        student_temperature,
        centre_momentum,
    )
    task = Dino(backbone, made, data, crops, settings, run.steps, describe(run, data, num_classes=0))
    task.init_from, task.init_resize = run.init_from, run.init_resize
    if local == "interpolate" and local_crops:
        task.mix_small_crops()
    if probing:
        task.probe(probing, probe_examples)
    return task


def _check_sizes(data: ImageData) -> None:
    """Raise a `UserError` unless large crops have the model's size, and small ones at most that."""
    fields = {LARGE: "config.data.train_ops", SECOND: "config.task.second_ops", SMALL: "config.task.local_ops"}
    shown = lambda shape: "x".join(map(str, shape))
    for name, shape in data.crop_shapes.items():
        if name == SMALL:
            if shape[2] != data.shape[2] or max(shape[0] - data.shape[0], shape[1] - data.shape[1]) > 0:
                raise UserError(
                    f"{fields[name]} gives crops of {shown(shape)}, config.data.eval_ops images of "
                    f"{shown(data.shape)}; small crops are no larger than these, with as many channels."
                )
        elif shape != data.shape:
            raise UserError(
                f"{fields[name]} gives crops of {shown(shape)}, config.data.eval_ops images of {shown(data.shape)}; "
                "make the large crops as large as these."
            )
