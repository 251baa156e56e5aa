"""DINO on ImageNet-1k with a ResMLP (Touvron et al. 2021, arXiv 2105.03404, table 3: k-NN 62.6 % and 69.4 %).

    python -m vit_jax_mixer.main --config=configs/dino_imagenet.py:S12

The argument is the size, S12 (the default) or S24. Of the authors' settings for ResMLP only the 300 epochs are
published. The others are those of DINO's own ViT-S/16 (Caron et al. 2021; facebookresearch/dino, ``main_dino.py``
and the command for ViT-S), the way of small crops through a fixed number of tokens is ours, and no run stands behind
it yet. It is made for about 16 GPUs.
"""

from configs import common, dino

EPOCH = 1_281_167 // 1_024  # steps


def _crops(size: int, areas: str, last: str) -> str:
    """Return the operations of crops that cover such a share of an image, with ``last`` before normalisation."""
    changes = "flip_lr|color_jitter(0.4, 0.4, 0.2, 0.1, probability=0.8)|grayscale(0.2)"
    return f"decode(3)|inception_crop({size}, {areas}, method='bicubic')|{changes}|{last}|normalize"


def get_config(size: str = "S12"):
    """Return the config for a ResMLP of that size."""
    config = common.get_config()
    config.task = dino.get_config().task
    config.task.update(
        second_ops=_crops(224, "0.4, 1.0", "gaussian_blur(0.1)|solarize(0.2)"),
        local_ops=_crops(96, "0.05, 0.4", "gaussian_blur(0.5)"),
        local_crops=8,
        local="interpolate",
        head=dict(prototypes=65_536, hidden_dim=2_048, bottleneck_dim=256, num_layers=3, norm_last_layer=False),
        momentum=0.996,
        teacher_temperature=0.07,
        warmup_temperature=0.04,
        warmup_temperature_steps=30 * EPOCH,
        probe="knn(20)",
        probe_examples=100_000,
    )
    config.data.train_ops = _crops(224, "0.4, 1.0", "gaussian_blur(1.0)")
    config.data.eval_ops = "decode(3)|resize_small(256, method='bicubic')|center_crop(224)|normalize"

    config.batch_size = 1_024
    config.steps = 300 * EPOCH
    config.model.name = f"ResMLP-{size}"
    with config.unlocked():
        del config.model.dropout_rate  # a ResMLP has none
    # DINO's 0.1 is that of the last block, and rises from 0; ResMLP has one rate for all, which is their mean.
    config.model.stochastic_depth_rate = 0.05
    config.model.dtype = "bfloat16"

    config.optim.optimizer = "adam"
    config.optim.learning_rate = 0.0005 * config.batch_size / 256
    config.optim.schedule = "cosine(floor=1e-6)"
    config.optim.warmup = "zero_to_one"
    config.optim.warmup_steps = 10 * EPOCH
    config.optim.decay = "cosine(start=0.04, end=0.4)"
    config.optim.clip_norm = 3.0
    config.optim.clip_norm_of = "each"
    config.optim.hold = "head/last_layer"
    config.optim.hold_steps = EPOCH

    config.eval_every = config.checkpoint.every = 5 * EPOCH
    config.checkpoint.best = "knn_20"
    return config
