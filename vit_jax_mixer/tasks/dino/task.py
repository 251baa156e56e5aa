"""The task itself; `vit_jax_mixer.tasks.dino` says what it is."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax_mixer import models, pretrained, probes
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.models import layers, stacked
from vit_jax_mixer.models.dino_head import DinoHead
from vit_jax_mixer.predictors.images import Images
from vit_jax_mixer.pretrained import resize
from vit_jax_mixer.tasks.base import Aux, Outputs, Task, TrainState, Tree
from vit_jax_mixer.tasks.dino import answers, collapse
from vit_jax_mixer.tasks.images import Crops, ImageData, begin_with

BANK = "training examples of the probes"  # a name of `Task.eval_data`; no metric begins with it
LARGE, SECOND, SMALL = "large", "large_2", "small"  # fields of a training example: crops u8[n, h, w, c]


class Dino(Task):
    """Images to features."""

    published = "extra/teacher/backbone"

    def __init__(
        self,
        backbone: Any,
        head: DinoHead,
        data: ImageData,
        crops: Mapping[str, Crops],
        settings: answers.Settings,
        steps: int,
        about: Images,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.data = data
        self.crops = crops
        self.settings = settings
        self.steps = steps
        self.init_from = self.init_resize = ""
        self.train_data = data.train
        self.eval_data = {} if data.eval is None else {data.eval_split: data.eval}
        self._about = about
        self._patch: tuple[int, int] | None = None  # where token mixing is brought to the small crops
        image = jax.ShapeDtypeStruct((1, *data.shape), jnp.float32)
        features, _ = jax.eval_shape(backbone.init_with_output, jax.random.key(0), image)
        self.width = features.shape[-1]  # C
        self._probes: dict[str, tuple[probes.Probe, ...]] = {}  # by the dataset that they learn from

    def probe(self, probing: tuple[probes.Probe, ...], examples: int) -> None:
        """Let evaluations try these probes, which learn from so many training examples, not augmented."""
        of_training = dataclasses.replace(self.data.plain, source=probes.sample(self.data.train.source, examples))
        rhythms = {f"{BANK}, every {n}" if n > 1 else BANK: n for n in sorted({p.every for p in probing})}
        self._probes = {name: tuple(p for p in probing if p.every == every) for name, every in rhythms.items()}
        self.eval_data = {**self.eval_data, **dict.fromkeys(rhythms, of_training)}
        self.every = rhythms

    def mix_small_crops(self) -> None:
        """Let token mixing be brought to the small crops' size, where else these are resized to the model's.

        Raises:
            UserError: the model has parameters for single tokens that are not of token mixing.
        """
        small = self.data.crop_shapes[SMALL]
        fresh = lambda shape: jax.eval_shape(
            self.backbone.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        )["params"]
        whole, wanted = fresh(self.data.shape), pretrained.flatten(fresh(small))
        self._patch = layers.patch_sides(getattr(self.backbone, "patch_size", 1))
        found = pretrained.flatten(jax.eval_shape(self._for_small, whole))
        shape = lambda arrays, name: arrays[name].shape if name in arrays else None
        odd = sorted(n for n in wanted.keys() | found.keys() if shape(wanted, n) != shape(found, n))
        if odd:
            raise UserError(
                f"config.task.local is 'interpolate', which knows the token mixing of a Mixer, ResMLP or gMLP, but not "
                f"{odd[0]} of this model; set it to 'resize'."
            )

    def _for_small(self, params: Tree) -> Tree:
        """Return the backbone's parameters for images as large as the small crops."""
        assert self._patch
        small = self.data.crop_shapes[SMALL][:2]
        height, width, _ = self.data.shape
        return resize.in_step(params, (height, width), small, self._patch)

    def about(self) -> Images:
        return self._about

    def forward_flop(self) -> float:
        """Return a third of the FLOP of a step for one image: the student's three passes and the teacher's one."""
        count = self.crops[SMALL].count if SMALL in self.crops else 0
        whole = models.forward_flop(self.backbone, self.data.shape)
        small = models.forward_flop(self.backbone, self.data.crop_shapes[SMALL]) if self._patch else whole
        head = models.forward_flop(self.head, (self.width,))
        return (2 + 2 / 3) * (whole + head) + count * (small + head)

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Return a fresh student, a teacher that is the same, and a centre."""
        of_backbone, of_head = jax.random.split(key)
        shown, _ = self.data.eval_ops.on_device(jnp.zeros((1, *self.data.shape), jnp.uint8))
        features = jnp.zeros((1, self.width))
        backbone = stacked.init(self.backbone, of_backbone, shown)
        params = {"backbone": backbone, "head": self.head.init(of_head, features)["params"]}
        return params, {"teacher": params, "centre": jnp.zeros(self.head.prototypes)}

    def load(self, params: Tree, extra: Tree) -> tuple[Tree, Tree]:
        """Read ``init_from``, if set, and let the teacher begin as the student does."""
        if self.init_from:
            backbone = begin_with(self.init_from, params["backbone"], self.init_resize, self.data.shape)
            params = {**params, "backbone": backbone}
        return params, {**extra, "teacher": params}

    def outputs(self, params: Tree, features: jax.Array) -> jax.Array:
        """Map f32[B, V, C] to f32[B, V, K]."""
        logits: Any = self.head.apply({"params": params["head"]}, features.reshape(-1, features.shape[-1]))
        return logits.reshape(*features.shape[:2], -1)

    def features(self, params: Tree, crops: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Map f32[B, n, h, w, c] to f32[B, n, C]; with a key as in training."""
        how: dict[str, Any] = {} if key is None else dict(train=True, rngs={"dropout": key})
        found: Any = self.backbone.apply({"params": params}, crops.reshape(-1, *crops.shape[2:]), **how)
        return found.reshape(*crops.shape[:2], -1)

    def augmented(self, name: str, crops: jax.Array, key: jax.Array) -> jax.Array:
        """Map u8[B, n, h, w, c] to f32[B, n, h, w, c]."""
        found, _ = self.crops[name].ops.on_device(crops.reshape(-1, *crops.shape[2:]), None, key)
        return found.reshape(*crops.shape[:2], *found.shape[1:])

    def loss(
        self, params: Tree, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Return the mean cross-entropy with the teacher's answers, and how undecided these are."""
        of_ops, of_large, of_small = jax.random.split(key, 3)
        crops = {n: self.augmented(n, batch[n], jax.random.fold_in(of_ops, i)) for i, n in enumerate(self.crops)}
        large = jnp.concatenate([crops[name] for name in (LARGE, SECOND) if name in crops], 1)
        taught = self.outputs(state.extra["teacher"], self.features(state.extra["teacher"]["backbone"], large))
        targets = self.targets(state, taught)

        found = [self.features(params["backbone"], large, of_large)]
        if SMALL in crops:
            small, backbone = crops[SMALL], params["backbone"]
            if self._patch:
                backbone = self._for_small(backbone)
            else:
                small = jax.image.resize(small, (*small.shape[:2], *self.data.shape), "linear")
            found.append(self.features(backbone, small, of_small))
        outputs = self.outputs(params, jnp.concatenate(found, 1))
        loss = answers.cross_entropy(targets, outputs, self.settings.student_temperature)
        return loss, Aux({"teacher_entropy": jnp.mean(self.entropies(targets))}, stats=taught.mean((0, 1)))

    def targets(self, state: TrainState, outputs: jax.Array) -> jax.Array:
        """Return the teacher's distributions f32[..., K]."""
        temperature = answers.teacher_temperature(self.settings, state.step)
        return answers.distributions(outputs, state.extra["centre"], temperature)

    def entropies(self, targets: jax.Array) -> jax.Array:
        """Return their entropy, f32[...], as a share of the largest, log K."""
        return jax.scipy.special.entr(targets).sum(-1) / np.log(max(self.head.prototypes, 2))

    def after_update(self, state: TrainState, aux: Aux) -> Tree:
        """Let the teacher follow the student, and the centre the teacher's outputs."""
        rate = answers.teacher_rate(self.settings.momentum, state.step - 1, self.steps)
        return {
            "teacher": answers.followed(state.extra["teacher"], state.params, rate),
            "centre": answers.centre_after(state.extra["centre"], aux.stats, self.settings.centre_momentum),
        }

    def eval_step(self, state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return each example's features, the entropy of the teacher's answer, the likeliest output, and the label."""
        shown, _ = self.data.eval_ops.on_device(batch["image"])
        features = self.features(state.extra["teacher"]["backbone"], shown[:, None])
        targets = self.targets(state, self.outputs(state.extra["teacher"], features))[:, 0]
        rows = {"entropy": self.entropies(targets), "output": jnp.argmax(targets, -1)}
        return {**rows, "features": features[:, 0], **{n: batch[n] for n in ("label",) if n in batch}}

    def evaluate(self, outputs: Callable[[str], Iterator[Outputs]]) -> dict[str, float]:
        """Return SPLIT/NAME for each probe, and the figures of `collapse`."""

        def rows(name: str) -> dict[str, np.ndarray]:
            batches = list(outputs(name))  # none, where probes are not due
            return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]} if batches else {}

        split = self.data.eval_split
        test = rows(split)
        found = collapse.figures(test["features"], test["entropy"], test["output"], self.head.prototypes)
        for name, chosen in self._probes.items():
            if bank := rows(name):
                of_bank, of_test = ((one["features"], one["label"]) for one in (bank, test))
                found |= probes.evaluate(chosen, *of_bank, *of_test, self.data.num_classes)
        return {f"{split}/{name}": value for name, value in found.items()}

    def remark(self, scores: Mapping[str, float]) -> str:
        """Say in a sentence that the teacher has collapsed."""
        prefix = f"{self.data.eval_split}/"
        return collapse.sentence({n.removeprefix(prefix): v for n, v in scores.items() if n.startswith(prefix)})
