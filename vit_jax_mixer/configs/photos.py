"""Your own photos, a folder for each class, on a laptop: a small Mixer from scratch, or a published ResMLP.

    python -m vit_jax_mixer.main --config=configs/photos.py --config.data.source=folder:photos
    python -m vit_jax_mixer.main --config=configs/photos.py:finetune --config.data.source=folder:photos

The argument is scratch (the default) or finetune, which fetches 62 MB of weights once. Made for some hundred to
some thousand photos in photos/CLASS/x.jpg, of which every tenth is kept for evaluation; where they have folders
for training and evaluation already, add --config.data.train=train --config.data.eval=val. Without any
evaluation: --config.data.train=all --config.data.eval=''.

From scratch, 2,000 steps are 64,000 images, at about 50 ms of CPU time each: an hour, divided by the cores that work
(measured over 100 steps with JPEGs of 1,600 x 1,200 pixels, on 2 cores that other work shared, where they took 9
minutes). `python -m vit_jax_mixer.plan` with the same flags and --target=cpu says what either takes on your
machine. How well the model does depends on the photos; 10 % of them tell.
"""

from configs import common


def get_config(how: str = "scratch"):
    """Return the config for a way to begin."""
    if how not in ("scratch", "finetune"):
        raise ValueError(f"photos.py has no way {how!r} to begin; it has scratch and finetune.")
    config = common.get_config()
    config.data.source = "folder:photos"
    config.data.train = "all[:90%]"
    config.data.eval = "all[90%:]"
    config.task.label_smoothing = 0.1
    config.eval_batch_size = 32
    config.log_every = 10
    if how == "scratch":
        config.steps = 2_000
        config.batch_size = 32
        config.model.name = "MlpMixer"
        with config.unlocked():
            config.model.num_blocks = 6
            config.model.patch_size = 8  # 144 tokens
            config.model.hidden_dim = 128
            config.model.tokens_mlp_dim = 64
            config.model.channels_mlp_dim = 512
        config.data.train_ops = "decode_crop(96, min_area=0.25)|flip_lr|value_range(-1, 1)"
        config.data.eval_ops = "decode(3)|resize_small(108)|center_crop(96)|value_range(-1, 1)"
        config.optim.optimizer = "adamw(weight_decay=0.1)"
        config.optim.learning_rate = 1e-3
        config.optim.warmup_steps = 100
        config.eval_every = config.checkpoint.every = 200
    else:
        config.steps = 200
        config.batch_size = 16
        config.init_from = "ResMLP-S12:dist"
        config.model.name = "ResMLP-S12"
        with config.unlocked():
            del config.model.dropout_rate  # which it has not
        config.data.train_ops = "decode_crop(224, min_area=0.25)|flip_lr|normalize"
        config.data.eval_ops = "decode(3)|resize_small(256)|center_crop(224)|normalize"
        config.optim.optimizer = "adamw(weight_decay=0.05)"
        config.optim.learning_rate = 1e-4
        config.optim.warmup_steps = 20
        config.eval_every = config.checkpoint.every = 50
    return config
