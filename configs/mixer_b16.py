"""Fine-tune a published Mixer-B/16, with the settings of the paper (Tolstikhin et al. 2021).

    python -m vit_jax_mixer.main --config=configs/mixer_b16.py:cifar10 --config.init_from=Mixer-B_16.npz

The argument is cifar10 (the default), cifar100 or imagenet2012. The dataset must be prepared
(`python -m vit_jax_mixer.data tfds:cifar10 --build`). Without ``init_from`` it trains from scratch.
Original figures for CIFAR-10: 96.72 % from ImageNet weights, 96.82 % from ImageNet-21k weights (the
published logs of the original code; not yet repeated here).
Made for 8 TPU cores; on one GPU, add --config.accum_steps=8.
"""

from configs import common

EVAL_SPLITS = {"cifar10": "test", "cifar100": "test", "imagenet2012": "validation"}  # by TFDS name


def get_config(dataset: str = "cifar10"):
    """Return the config for a dataset."""
    if dataset not in EVAL_SPLITS:
        raise ValueError(f"mixer_b16.py has no dataset {dataset!r}; it has {', '.join(EVAL_SPLITS)}.")
    config = common.get_config()
    config.model.name = "Mixer-B/16"
    config.data.source = f"tfds:{dataset}"
    config.data.eval = EVAL_SPLITS[dataset]
    config.data.eval_ops = "decode(3)|resize(224)|value_range(-1, 1)"
    config.checkpoint.best = f"{config.data.eval}/accuracy"

    # 10,000 steps of batch 512, rate 0.03, clip 1, cosine after a warm-up of 500: as in common.py.
    config.optim.optimizer = "sgd(momentum=0.9, accumulator_dtype='bfloat16')"
    return config
