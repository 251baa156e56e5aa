"""Fine-tune a published Mixer-B/16, with the settings of the paper (Tolstikhin et al. 2021).

    python -m vit_jax_mixer.main --config=configs/mixer_b16.py:cifar10 --config.init_from=Mixer-B_16.npz
    python -m vit_jax_mixer.main --config=configs/mixer_b16.py:cifar10,448 --config.init_from=Mixer-B_16.npz

The argument is cifar10 (the default), cifar100 or imagenet2012, and may end with an image size: a
multiple of 16, 224 by default. A larger whole multiple of 224 mixes each part of 224 pixels by itself at
first, as the paper does, with as many times the hidden width of token mixing; other sizes interpolate
the weights (``init_resize`` of common.py). The dataset must be prepared
(`python -m vit_jax_mixer.data tfds:cifar10 --build`). Without ``init_from`` it trains from scratch.
Original figures for CIFAR-10: 96.72 % from ImageNet weights, 96.82 % from ImageNet-21k weights (the
published logs of the original code, 224 pixels; not yet repeated here).
Made for 8 TPU cores; on one GPU, add --config.accum_steps=8.
"""

from configs import common

EVAL_SPLITS = {"cifar10": "test", "cifar100": "test", "imagenet2012": "validation"}  # by TFDS name


def get_config(argument: str = "cifar10"):
    """Return the config for a dataset, and perhaps an image size."""
    dataset, _, size = argument.partition(",")
    if dataset not in EVAL_SPLITS:
        raise ValueError(f"mixer_b16.py has no dataset {dataset!r}; it has {', '.join(EVAL_SPLITS)}.")
    config = common.get_config()
    config.model.name = "Mixer-B/16"
    config.data.source = f"tfds:{dataset}"
    config.data.eval = EVAL_SPLITS[dataset]
    config.data.eval_ops = "decode(3)|resize(224)|value_range(-1, 1)"

    # 10,000 steps of batch 512, rate 0.03, clip 1, cosine after a warm-up of 500: as in common.py.
    config.optim.optimizer = "sgd(momentum=0.9, accumulator_dtype='bfloat16')"
    if size:
        set_size(config, size)
    return config


def set_size(config, size: str) -> None:
    """Change the image size, and how weights for 224 pixels are brought there."""
    if not size.isdecimal() or int(size) == 0 or int(size) % 16:
        raise ValueError(f"mixer_b16.py: the image size {size!r} is no multiple of the patch size, 16; choose another.")
    for ops in ("train_ops", "eval_ops"):
        config.data[ops] = config.data[ops].replace("(224)", f"({int(size)})")
    times, rest = divmod(int(size), 224)
    if rest:
        config.init_resize = "interpolate"
    elif times > 1:
        config.init_resize = "block_diagonal"
        with config.unlocked():
            config.model.tokens_mlp_dim = 384 * times**2
