"""A Mixer of 0.67 M parameters from scratch on CIFAR-10, at 32 pixels (omihub777/MLP-Mixer-CIFAR, public code).

    python -m vit_jax_mixer.main --config=configs/mixer_nano.py

CIFAR-10 must be prepared (`python -m vit_jax_mixer.data tfds:cifar10 --build`). The full run of 300 epochs, 117,300
steps, waits for a GPU: it took its authors 3.5 hours on a P100, and reached 90.83 %. No run of ours stands behind it.
They name 0.67 M parameters, and a hidden width of 512 for channel mixing, with which there are 1,132,170 by our count.
The argument chooses: small (the default), which is 288 wide and has 671,626, or wide, which is 512.
"""

from configs import common

EPOCH = 391  # steps, 50,000 / 128 rounded up
WIDTHS = {"small": 288, "wide": 512}


def get_config(width: str = "small"):
    """Return the config for a width of channel mixing."""
    if width not in WIDTHS:
        raise ValueError(f"mixer_nano.py has no width {width!r}; it has {', '.join(WIDTHS)}.")
    config = common.get_config()
    config.batch_size = 128
    config.steps = 300 * EPOCH
    config.task.label_smoothing = 0.1

    config.model.name = "MlpMixer"
    with config.unlocked():
        config.model.num_blocks = 8
        config.model.patch_size = 4  # 64 tokens
        config.model.hidden_dim = 128
        config.model.tokens_mlp_dim = 64
        config.model.channels_mlp_dim = WIDTHS[width]
        config.model.exact_gelu = True

    config.data.source = "tfds:cifar10"
    config.data.eval = "test"
    normalize = "normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))"  # CIFAR-10's own
    # Cutmix in half of the batches.
    mixed = "mixup_or_cutmix(mixup=0, cutmix=1.0, probability=0.5)"
    config.data.train_ops = f"decode(3)|random_shift(4)|flip_lr|autoaugment('cifar10')|{normalize}|{mixed}"
    config.data.eval_ops = f"decode(3)|{normalize}"

    config.optim.optimizer = "adam(b2=0.99, l2=5e-5)"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 5 * EPOCH
    config.optim.schedule = "cosine(floor=1e-6)"
    config.optim.clip_norm = 0.0

    config.eval_every = config.checkpoint.every = 5 * EPOCH
    return config
