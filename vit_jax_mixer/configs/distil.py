"""A small ResMLP on the embedded digits, taught by another model.

python -m vit_jax_mixer.main --config=configs/digits.py
python -m vit_jax_mixer.main --config=configs/distil.py --config.task.teacher=runs/digits

The fields of config.task are there for any config: --config.task.name=distillation --config.task.teacher=...
"""

from configs import digits


def get_config():
    """Return the config."""
    config = digits.get_config()
    with config.unlocked():
        config.model = dict(name="ResMlp", num_blocks=2, patch_size=2, hidden_dim=24, mlp_ratio=2, layerscale_init=0.1)
        config.task.name = "distillation"
        # A workdir, published weights or a file, as config.init_from names them, or a folder of logits.
        config.task.teacher = ""
        # What is learnt from it: 'hard(weight=0.5)', its likeliest class, or 'soft(temperature=3, weight=0.5)'.
        config.task.kind = "hard"
    return config
