"""Train a Mixer from scratch on ImageNet-1k (Tolstikhin et al. 2021).

    python -m vit_jax_mixer.main --config=configs/mixer_imagenet.py:B/16

The argument is the size: S/32, S/16, S/8, B/32, B/16 (the default), L/32, L/16 or H/14.
ImageNet must be prepared by TFDS (`python -m vit_jax_mixer.data tfds:imagenet2012 --build` says how), or
be a folder (--config.data.source=folder:DIR --config.data.eval=val).
Made for a TPU pod slice with 4,096 examples a step; no run of ours stands behind it yet (a public
B/16 run with nearly this recipe reports 76.3 % top-1 after its 300 epochs).
"""

from configs import common

TRAIN_EXAMPLES = 1_281_167


def get_config(size: str = "B/16"):
    """Return the config for a size of the paper's table 1."""
    config = common.get_config()
    config.batch_size = 4_096
    config.steps = 300 * TRAIN_EXAMPLES // config.batch_size  # 300 epochs

    config.model.name = f"Mixer-{size}"
    config.model.stochastic_depth_rate = 0.1
    # Half the compile time and a third of the memory on a TPU, for a fifth more arithmetic (docs/running_at_scale.md).
    config.model.dtype = "bfloat16"
    config.model.scan = True
    config.model.remat = True

    config.data.train_ops = "decode_crop(224)|flip_lr|randaugment(2, 15)|value_range(-1, 1)|mixup(0.5)"

    config.optim.optimizer = "adamw(weight_decay=0.1)"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 10_000

    config.eval_every = 5_000
    config.eval_batch_size = 1_024
    return config
