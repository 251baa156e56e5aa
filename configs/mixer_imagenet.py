"""Train a Mixer from scratch on ImageNet-1k (Tolstikhin et al. 2021).

    python -m vit_jax_mixer.main --config=configs/mixer_imagenet.py:B/16

The argument is the size: S/32, S/16, S/8, B/32, B/16 (the default), L/32, L/16 or H/14.
ImageNet must be prepared as ArrayRecord (`tfds build imagenet2012 --file_format=array_record`).
Made for a TPU pod slice with 4,096 examples a step; no run of ours stands behind it yet (a public
B/16 run with nearly this recipe reports 76.3 % top-1 after its 300 epochs).
Of the paper's recipe, RandAugment (2, 15) and mixup 0.5 are still missing here.
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
    config.model.dtype = "bfloat16"

    config.optim.optimizer = "adamw(weight_decay=0.1)"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 10_000

    config.eval_every = 5_000
    config.eval_batch_size = 1_024
    return config
