"""DINO, features without labels (Caron et al. 2021), with a small ResMLP on Fashion-MNIST or other images of 28 x 28.

    python -m vit_jax_mixer.main --config=configs/dino.py --config.data.source=idx:DIR

The workdir is then a model without a head: `predict --features`, `evaluate --probe` and `export` take it, and another
run begins with it by --config.init_from. docs/dino.md says more, docs/results.md what came out, which is
little yet; configs/dino_imagenet.py has DINO's own settings. Where layers are narrow, kernels of deviation 0.02 and a
small layer scale leave little of the signal, hence the other start here.
"""

from ml_collections import ConfigDict

from configs import common


def get_config():
    """Return the config."""
    config = common.get_config()
    config.task = ConfigDict(
        dict(
            name="dino",
            # What is done to the second of the two large crops, where it is another thing than to the first
            # (config.data.train_ops, which else makes both).
            second_ops="",
            local_ops="decode(1)|inception_crop(28, 0.25, 0.6)|flip_lr|value_range(-1, 1)",  # to small crops
            local_crops=2,  # how many small crops; 0 for none
            # How small crops meet the model's number of tokens: 'resize' them to the model's size, or 'interpolate' its
            # token mixing to theirs.
            local="resize",
            head=dict(
                prototypes=256,  # outputs
                hidden_dim=128,  # width of the MLP
                bottleneck_dim=32,  # width before the last layer
                num_layers=3,  # of the MLP
                norm_last_layer=True,  # the weights of an output have length 1; else they learn their length
            ),
            momentum=0.95,  # of the teacher at first; it rises to 1
            teacher_temperature=0.04,  # the lower, the sharper its answers
            warmup_temperature=0.04,  # the same at first
            warmup_temperature_steps=0,  # updates in which it changes
            student_temperature=0.1,
            centre_momentum=0.9,  # of the mean of the teacher's outputs, which is taken from them
            probe="knn(20)",  # classifiers of its features, tried in evaluations, as 'knn(20)|ridge(5)'; '' for none
            probe_examples=10_000,  # of training that they learn from, at most
        )
    )
    config.steps = 1_200
    config.batch_size = 64
    config.init = "kaiming_uniform"

    config.model.name = "ResMlp"
    with config.unlocked():
        del config.model.dropout_rate  # a ResMLP has none
        config.model.num_blocks = 2
        config.model.patch_size = 7  # 16 tokens
        config.model.hidden_dim = 64
        config.model.mlp_ratio = 2
        config.model.layerscale_init = 1.0

    config.data.source = "idx:data/fashion"
    config.data.eval = "test"
    config.data.train_ops = "decode(1)|inception_crop(28, 0.5, 1.0)|flip_lr|value_range(-1, 1)"
    config.data.eval_ops = "decode(1)|value_range(-1, 1)"
    config.loader.workers = 0
    config.loader.threads = 1  # tiny images: more threads only wait for each other

    config.optim.optimizer = "adamw(weight_decay=0.04)"
    config.optim.learning_rate = 4e-3
    config.optim.warmup_steps = 40
    config.optim.clip_norm = 3.0
    config.optim.clip_norm_of = "each"

    config.log_every = 50
    config.eval_every = config.checkpoint.every = 200
    config.checkpoint.best = "knn_20"
    return config
