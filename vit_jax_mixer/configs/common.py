"""The fields that every config has; the other files say what is different."""

from typing import Any

from ml_collections import ConfigDict, FieldReference


def _length(steps: int) -> Any:
    """Return a value in whose place a text may be put, too."""
    return FieldReference(steps, field_type=object)


def get_config() -> Any:
    """Return the base config: a Mixer-S/16 on nothing yet. Locked: a misspelt field is an error."""
    config: Any = ConfigDict()  # its fields have no static types

    # --- The run ---
    config.seed = 0  # of the initialisation, the order of examples, augmentation and dropout
    # Updates in all; or, as whatever counts steps here, '20 epochs': so often are all examples of training seen.
    config.steps = _length(10_000)
    config.batch_size = 512  # examples of an update, over all devices and hosts
    config.accum_steps = 1  # parts in which a batch is computed, one after the other, to save memory
    config.parallel = "jit"  # how the devices share a batch: 'jit', 'jit(fsdp=4)' (spread the state over 4), or 'pmap'
    config.init_from = ""  # pretrained weights to begin with, as Mixer-B_16.npz; '' for none
    # What fits them to another image or patch size: 'block_diagonal' (for whole multiples of theirs),
    # 'interpolate' (for any other), 'patch', or two parts, as 'patch|interpolate'; '' for an error.
    config.init_resize = ""

    # How fresh parameters are drawn: '' as the model's paper has it, or 'kaiming_uniform' (docs/optimizers.md).
    config.init = ""

    config.ema_decay = 0.0  # of a running mean of the parameters, which is evaluated and saved too; 0 for none
    # Gradients beside the parameters, which lead to flatter minima: 'sam(rho=0.05)', 'gsam(rho=0.1, alpha=0.4)',
    # 'ssam(rho=0.05)' or 's2sam(rho=0.05)' (docs/optimizers.md); '' for none.
    config.sharpness = ""
    config.on_not_finite = "stop"  # at a loss or gradient that is not finite; or 'skip(3)': leave out up to 3 steps
    config.debug_nans = False  # stop at the operation that makes the first NaN, with a traceback; slow
    config.profile = ""  # steps to trace, as '10:15', for TensorBoard or Perfetto

    # --- What is learnt, and the fields of that task ---
    config.task = ConfigDict()
    config.task.name = "classification"  # a file of vit_jax_mixer/tasks/
    config.task.loss = "softmax"  # cross-entropy: 'softmax' or 'sigmoid'
    config.task.label_smoothing = 0.0  # share of the label that is spread over all classes
    # What losses of training are multiplied with: 'balanced', or by the names of classes, as '{"cat": 2}'; '' for 1.
    config.task.class_weights = ""
    # Simple classifiers of the frozen features, tried in each evaluation, as 'ridge(5)|knn(20)|logistic'; '' for none.
    config.task.probe = ""
    config.task.probe_examples = 10_000  # of training that they learn from, at most; chosen once, not augmented

    # --- The model: a name of `python -m vit_jax_mixer.models`, and any of its attributes ---
    config.model = ConfigDict()
    config.model.name = "Mixer-S/16"  # see the command above
    config.model.dropout_rate = 0.0  # inside the MLPs
    config.model.stochastic_depth_rate = 0.0  # of the last block; linear in depth
    config.model.dtype = "float32"  # of the computation: 'float32' or 'bfloat16'
    config.model.scan = False  # compile one block and loop over it: a deep model compiles faster
    config.model.remat = False  # compute activations again in the backward pass: less memory, more time

    # --- The data: sources and operations are those of docs/data.md ---
    config.data = ConfigDict()
    config.data.source = "tfds:imagenet2012"  # KIND:PLACE, as tfds:NAME, folder:DIR, manifest:FILE, hf:NAME or idx:DIR
    config.data.train = "train"  # split for training, or a part of it, as train[:98%]
    config.data.eval = "validation"  # split for evaluation, which names its metrics, as test/accuracy; '' for none
    # What is done to an image for training, in this order; value_range is what the model reads.
    config.data.train_ops = "decode_crop(224)|flip_lr|value_range(-1, 1)"
    # The same for evaluation.
    config.data.eval_ops = "decode(3)|resize_small(256)|center_crop(224)|value_range(-1, 1)"

    config.data.views = 1  # times that an example follows itself, augmented anew each time
    config.data.balance = ""  # or 'classes': each class of training is drawn equally often, small ones too
    config.data.on_bad_example = "stop"  # or 'skip': take another, and list the bad one in the workdir
    # Images that stay in memory, once decoded (docs/data.md): 'auto', where they can; 'host', or an error; 'device',
    # on each device; or 'none'.
    config.data.cache = "auto"
    config.data.cache_mib = 1_024  # of memory that they may take, on each host or device

    config.loader = ConfigDict()  # each process of the run has its own
    config.loader.workers = -1  # processes that make batches; 0 for threads alone; -1 chooses by the cores
    config.loader.threads = -1  # batches that each makes at the same time; -1 chooses by the cores
    config.loader.prefetch = 8  # batches that each makes ahead; they bound the memory

    # --- The optimizer ---
    config.optim = ConfigDict()
    config.optim.optimizer = "sgd(momentum=0.9)"  # or 'adam', 'adagrad', 'adamw(...)', 'lamb(...)', 'lars(...)'
    config.optim.learning_rate = 0.03  # the highest, after the warm-up
    # After the warm-up: 'cosine' or 'linear' to 0, 'constant', 'inverse_sqrt', 'cosine(decay_steps=900, floor=1e-6)',
    # or 'restarts(first=500, factor=2)': cosines, one after another.
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = _length(500)  # steps in which the rate grows linearly
    config.optim.warmup = "from_zero"  # so that the first update has rate 0; or 'from_one', or 'from_rate(1e-6)'
    config.optim.clip_norm = 1.0  # largest norm of the gradient; 0 for no limit
    config.optim.clip_norm_of = "all"  # the norm of all parameters together, or of 'each' by itself
    config.optim.decay = ""  # weight decay that changes, as 'cosine(start=0.04, end=0.4)' with 'adam'; '' for none
    config.optim.hold = ""  # regular expression: parameters with it in their name stay as they are
    config.optim.hold_steps = 0  # in so many first updates
    config.optim.noise = ""  # added to the clipped gradient: 'gaussian(eta=0.01, gamma=0.55)'; '' for none

    # What the rate of parameters is multiplied with, by regular expressions of their names, the first that is found;
    # 0 freezes: '{"^head": 10, "^stem": 0}' (docs/optimizers.md); '' for 1 throughout.
    config.optim.rates = ""
    config.optim.layer_decay = 1.0  # the same by depth: 0.75 for the last block, 0.75^2 for the one before, ...

    # --- Logging, evaluation, checkpoints; all three also at the end ---
    config.log_every = _length(50)  # steps
    config.log_gradient_norms = False  # those of each block too, and a word if they vanish
    # Where metrics and pictures go: tensorboard, report (metrics.png, report.html), csv, wandb(project="mine") and your
    # own; metrics.jsonl is always written. tensorboard(histograms=True) has those of the parameters too; so has wandb.
    config.writers = "jsonl|tensorboard|report"
    config.eval_every = _length(1_000)  # steps
    config.eval_batch_size = 512  # over all devices and hosts
    config.checkpoint = ConfigDict()
    config.checkpoint.every = _length(1_000)  # steps; each evaluation saves one too
    config.checkpoint.keep = 2  # the newest that stay; the one before helps if a disk damages the newest
    config.checkpoint.best = "accuracy"  # of the evaluation: the best by this stays too; '' for none

    # --- An end before config.steps, to which the schedule of the learning rate stays ---
    config.early_stopping = ConfigDict()
    config.early_stopping.metric = ""  # of the evaluation, as config.checkpoint.best; '' for no such end
    config.early_stopping.patience = 10  # evaluations, one after another, without improvement: the last ends the run
    config.early_stopping.min_delta = 0.0  # by how much an improvement must be better

    # --- A learning rate that is lowered, below its schedule, when a metric no longer improves ---
    config.plateau = ConfigDict()
    config.plateau.metric = ""  # of the evaluation, as config.checkpoint.best; '' for a rate that is the schedule's
    config.plateau.patience = 3  # evaluations, one after another, without improvement: after the last it is lowered
    config.plateau.min_delta = 0.0  # by how much an improvement must be better
    config.plateau.factor = 0.1  # what the rate is multiplied with each time

    return config.lock()
