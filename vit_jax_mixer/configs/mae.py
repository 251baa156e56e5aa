"""Masked pretraining, without labels: on the embedded digits, or of a published size on ImageNet.

python -m vit_jax_mixer.main --config=configs/mae.py
python -m vit_jax_mixer.main --config=configs/mae.py:ResMLP-S12

The result is the model without a head, for `predict --features`, `evaluate --probe`, `export` and, as
`--config.init_from=`, for fine-tuning (docs/mae.md). No run of a published size has been made.
"""

from ml_collections import ConfigDict

from configs import common, digits


def get_config(model=""):
    """Return the config; ``model`` is a name of `python -m vit_jax_mixer.models`, for ImageNet at 224 pixels."""
    config = common.get_config() if model else digits.get_config()
    with config.unlocked():
        config.task = ConfigDict()
        config.task.name = "mae"
        config.task.mask_ratio = 0.6  # share of the patches that are hidden
        config.task.normalise = True  # learn patches of mean 0 and deviation 1 each, not pixels
        # Or a few blocks: 'blocks(count=1, hidden_dim=128, tokens_mlp_dim=64, channels_mlp_dim=512)'.
        config.task.decoder = "linear"
    config.checkpoint.best = "min loss"
    if not model:
        return config
    config.model = dict(name=model, dtype="bfloat16")
    config.data.train_ops = "decode_crop(224)|flip_lr|value_range(-1, 1)"
    config.steps = 250_000  # 400 epochs of 2,048 images
    config.batch_size = 2_048
    config.optim.optimizer = "adamw(b2=0.95, weight_decay=0.05, no_decay='(bias|scale|mask_token)$')"
    config.optim.learning_rate = 1.2e-3  # 1.5e-4 for each 256 images, as the masked autoencoder's
    config.optim.warmup_steps = 25_000
    config.eval_every = config.checkpoint.every = 5_000
    return config
