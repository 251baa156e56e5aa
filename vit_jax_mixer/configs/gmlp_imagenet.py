"""Train a gMLP from scratch on ImageNet-1k (Liu et al. 2021, "Pay Attention to MLPs", arXiv 2105.08050).

    python -m vit_jax_mixer.main --config=configs/gmlp_imagenet.py:S16

The argument is the size: Ti16, S16 (the default) or B16. ImageNet must be prepared by TFDS
(`python -m vit_jax_mixer.data tfds:imagenet2012 --build` says how), or be a folder
(--config.data.source=folder:DIR --config.data.eval=val).
The settings follow the paper's appendix as we know it; they were not compared with its page once more, so look there
before you call them the paper's. In the place of AutoAugment's policy for ImageNet, which is not here, stands
RandAugment. No run of ours stands behind it.
Made for a TPU pod slice with 4,096 examples a step.
"""

from configs import common

TRAIN_EXAMPLES = 1_281_167
RATES = {"Ti16": 0.0, "S16": 0.05, "B16": 0.2}  # of stochastic depth


def get_config(size: str = "S16"):
    """Return the config for a size of the paper's table 1."""
    if size not in RATES:
        raise ValueError(f"gmlp_imagenet.py has no size {size!r}; it has {', '.join(RATES)}.")
    config = common.get_config()
    config.batch_size = 4_096
    config.steps = 300 * TRAIN_EXAMPLES // config.batch_size  # 300 epochs
    config.task.label_smoothing = 0.1

    config.model.name = f"gMLP-{size}"
    with config.unlocked():
        del config.model.dropout_rate  # which it has not
    config.model.stochastic_depth_rate = RATES[size]
    config.model.dtype = "bfloat16"
    config.model.scan = True
    config.model.remat = True

    config.data.train_ops = (
        "decode_crop(224)|flip_lr|timm_randaugment('rand-m9-n2-mstd0.5-inc1')|value_range(-1, 1)"
        "|mixup_or_cutmix(mixup=0.8, cutmix=1.0)"
    )

    config.optim.optimizer = "adamw(weight_decay=0.05, eps=1e-6)"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 10_000

    config.eval_every = 5_000
    config.eval_batch_size = 1_024
    return config
