"""What the train loop asks of a task; `docs/adding_a_task.md` walks through one."""

import abc
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import flax.struct
import jax
import numpy as np

from vit_jax_mixer.data.pipeline import Dataset
from vit_jax_mixer.predictors import Predictor

Tree = Any  # a pytree of arrays
Outputs = Mapping[str, np.ndarray]


@flax.struct.dataclass
class TrainState:
    """All that a training step reads and writes; everything but ``frozen`` is in a checkpoint."""

    step: jax.Array  # i32[], updates made so far
    params: Tree  # what the optimizer changes
    opt_state: Tree
    extra: Tree  # arrays that are state but no parameters: an EMA teacher, a centre, a queue
    frozen: Tree  # what the loss reads and nothing changes: a distillation teacher
    ema: Tree = ()  # a running mean of the parameters, where the config asks for one
    skipped: Tree = ()  # i32[], steps that were not finite and changed nothing, where the config allows some


@flax.struct.dataclass
class Aux:
    """What a loss returns beside its value, of the part of the batch that it was given.

    The loss, metrics and stats are means over that part, of float arrays; the loop takes their mean
    over devices and accumulation steps, as it does of the gradients. Where they are means over something
    of which examples have more or less (tokens, masked patches), ``weight`` says how much there was: then
    the mean is weighted by it, and that of the whole batch whatever the parts. If a whole batch has nothing,
    its loss is 0 / 0, and not finite. Rows belong to one example each: the loop puts together those of the
    whole batch, in the batch's order.
    """

    metrics: Mapping[str, jax.Array]  # f32[] each, logged as train/NAME
    stats: Tree = ()  # means that `Task.after_update` needs, as of a teacher's outputs
    rows: Tree = ()  # arrays [b, ...] of the b examples given, as the keys of a queue; `after_update` gets [B, ...]
    weight: jax.Array | None = None  # f32[], what the means are over; None for the examples, as many in all parts


class Task(abc.ABC):
    """What is learnt: the model, its data, the loss of a batch and the evaluation.

    A task is a file ``tasks/NAME.py`` with ``create(run, **fields)``, where ``run`` is the whole
    `Config` and the fields are those of ``config.task``. The loop owns the rest: steps, devices,
    optimizer, logging, checkpoints.

    Attributes:
        train_data: examples of training, with their augmentation.
        eval_data: the datasets that `evaluate` may ask for, by name.
        every: of these, those that are read in some evaluations alone: each so many, and the last.
        published: which tree of the state users get, as 'extra/teacher/backbone'; '' for the parameters, or their
            running mean where there is one. It has just what the model of `about` has.
        digests: of what the loss reads beside the data, by name, as 'the teacher': a run goes on with the same alone.
    """

    train_data: Dataset
    eval_data: Mapping[str, Dataset]
    every: Mapping[str, int] = MappingProxyType({})
    published: str = ""
    digests: Mapping[str, str] = MappingProxyType({})

    @abc.abstractmethod
    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Return fresh (params, extra); pure, and traced for their shapes alone on a resume."""

    def load(self, params: Tree, extra: Tree) -> tuple[Tree, Tree]:
        """Put pretrained weights in the place of fresh ones; called once, before step 0."""
        return params, extra

    def about(self) -> Predictor | None:
        """Return what a user of the trained model must know, for ``model.json``; None where nobody is to use it."""
        return None

    @property
    def noun(self) -> str:
        """What ``config.batch_size`` counts, for people, as 'images' or 'tokens'."""
        return f"{predictor.field}s" if (predictor := self.about()) else "examples"

    def forward_flop(self) -> float:
        """Return the FLOP of the model's forward pass of one example; 0 if not known."""
        return 0.0

    def frozen(self) -> Tree:
        """Return what the loss reads and nothing changes; called at every start, and by nothing that only plans."""
        return ()

    def frozen_shapes(self) -> Tree:
        """Return the shapes and types of `frozen`, as ``jax.eval_shape`` of an ``init`` gives them; loads nothing."""
        if type(self).frozen is not Task.frozen:
            raise NotImplementedError(f"{type(self).__name__} has `frozen`, and must say its shapes in `frozen_shapes`")
        return ()

    @abc.abstractmethod
    def loss(
        self, params: Tree, state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Return (loss f32[], Aux), where the gradient is taken for ``params``.

        ``state`` gives the step, ``extra`` and ``frozen``. ``key`` is this step's own; all
        randomness comes from it.
        """

    def after_update(self, state: TrainState, aux: Aux) -> Tree:
        """Return the new ``extra``: from the old one, the new parameters and what the loss said of the whole batch."""
        return state.extra

    @abc.abstractmethod
    def eval_step(self, state: TrainState, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """Return arrays with one row an example, [B, ...]: losses, features, decoded tokens."""

    @abc.abstractmethod
    def evaluate(self, outputs: Callable[[str], Iterator[Outputs]]) -> dict[str, float]:
        """Return metrics by name, as 'test/accuracy'.

        ``outputs(name)`` runs `eval_step` over ``eval_data[name]`` and yields its arrays on the
        host, batch by batch; each example occurs in exactly one of them, padding in none. Of a
        dataset that is not due in this evaluation it yields none, and its metrics are left out.
        Names begin with that of the dataset and a slash.
        """

    def pictures(self, outputs: Callable[[str], Iterator[Outputs]]) -> Mapping[str, Any]:
        """Return pictures by name, as Pillow has them, that go to the workdir and to TensorBoard with an evaluation.

        A text, as of translations, goes to the workdir alone.

        ``outputs`` are as in `evaluate`, after which it is called.
        """
        return {}

    def sheet(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Return pictures by name, as `pictures`, of the first batch of training, of this host as it is read."""
        return {}

    def conclusion(self) -> Mapping[str, Any]:
        """Return pictures by name, as `pictures`, at the end of a run, of what the last `evaluate` found."""
        return {}

    def remark(self, scores: Mapping[str, float]) -> str:
        """Return a sentence on what an evaluation found, for the console; '' for none."""
        return ""
