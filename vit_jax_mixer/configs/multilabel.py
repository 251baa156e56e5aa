"""Your own photos with several labels each, listed in a table: a small Mixer from scratch, or a published ResMLP.

    python -m vit_jax_mixer.main --config=configs/multilabel.py --config.data.source=manifest:photos.csv
    python -m vit_jax_mixer.main --config=configs/multilabel.py:finetune --config.data.source=manifest:photos.csv

The table has the columns path and label; a label lists those of an image, as cat;dog, and a single ; is none
(docs/multilabel.md). All else, and how long it takes, is as in `photos.py`. No figure of learning has been measured.
"""

from ml_collections import ConfigDict

from configs import photos


def get_config(how: str = "scratch"):
    """Return the config for a way to begin, scratch or finetune."""
    config = photos.get_config(how)
    config.task = ConfigDict(
        dict(
            name="multilabel",
            threshold=0.5,  # the probability from which on a label is told, and counted by F1
        )
    )
    config.data.source = "manifest:photos.csv"
    config.checkpoint.best = "mean_average_precision"
    return config
