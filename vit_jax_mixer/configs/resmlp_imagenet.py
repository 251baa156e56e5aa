"""Train a ResMLP from scratch on ImageNet-1k, as published (Touvron et al. 2021; facebookresearch/deit, issue 106).

    python -m vit_jax_mixer.main --config=configs/resmlp_imagenet.py:S12

The argument is the size: S12 (the default), S24, S36, B24 (patches of 8 pixels) or B24/16 (of 16).
ImageNet must be prepared by TFDS (`python -m vit_jax_mixer.data tfds:imagenet2012 --build` says how), or
be a folder (--config.data.source=folder:DIR --config.data.eval=val).
Published top-1 without distillation: S12 76.6 %, S24 79.4 %, S36 79.7 %, B24 81.0 %. No run of ours stands
behind it yet. The authors computed in float32 throughout; docs/resmlp.md says where ours differs. The batch was that of
several GPUs; on fewer, add --config.accum_steps=8.
"""

from configs import common

TRAIN_EXAMPLES = 1_281_167
SIZES = ("S12", "S24", "S36", "B24", "B24/16")


def get_config(size: str = "S12"):
    """Return the config for a size of the paper's table."""
    if size not in SIZES:
        raise ValueError(f"resmlp_imagenet.py has no size {size!r}; it has {', '.join(SIZES)}.")
    config = common.get_config()
    config.batch_size = 2_048
    epoch = TRAIN_EXAMPLES // config.batch_size  # of images that are shown, three of each
    config.steps = 400 * epoch
    config.task.label_smoothing = 0.1

    config.model.name = f"ResMLP-{size}"
    with config.unlocked():
        del config.model.dropout_rate  # which it has not
    config.model.stochastic_depth_rate = 0.05  # of all blocks alike, in all sizes

    config.data.train_ops = (
        "decode_crop(224, min_area=0.08)|flip_lr|timm_randaugment('rand-m9-n2-mstd0.5-inc1')|normalize"
        "|random_erase(0.25)|mixup_or_cutmix(mixup=0.8, cutmix=1.0)"
    )
    config.data.eval_ops = "decode(3)|resize_small(248, 'bicubic')|center_crop(224)|normalize"  # 248 is 224 / 0.9
    config.data.views = 3

    config.optim.optimizer = "lamb(weight_decay=0.2)"  # kernels alone are decayed: no bias, Aff or layer scale
    config.optim.learning_rate = 5e-3
    config.optim.warmup = "from_rate(1e-6)"
    config.optim.warmup_steps = 5 * epoch
    config.optim.schedule = "cosine(floor=1e-5, whole=True)"
    config.optim.clip_norm = 1.0  # LAMB's own, in apex and timm

    config.eval_every = config.checkpoint.every = 5 * epoch
    config.eval_batch_size = 1_024
    return config
