"""Rows of a table: a Mixer whose patches are columns.

    python -m vit_jax_mixer.main --config=configs/tabular.py
    python -m vit_jax_mixer.main --config=configs/tabular.py:rows.csv
    python -m vit_jax_mixer.main --config=configs/tabular.py:original --config.data.source=table:DIR

Without an argument it learns to tell malignant from benign in a table that scikit-learn ships (569 rows, 30
columns), and shows logistic regression and gradient boosting beside it. A file, .csv or .parquet, or a folder
with train.csv and test.csv, takes its place: the target is the column named label, target, class or y, or else the
last one; --config.data.target=NAME names another. 'masked', or 'masked:' and a file or folder, learns from the
same rows without their labels (docs/ideas.md): another run begins with it by --config.init_from. 'original' is the
tabular document's own system, as it was meant: 42 columns of UNSW-NB15, in DIR/train.csv and DIR/test.csv.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import common

OURS = ""


def get_config(what: str = OURS):
    """Return the config for the embedded table, 'original', or a file or folder; after 'masked:', without labels."""
    if what.partition(":")[0] == "masked":
        config = get_config(what.partition(":")[2])
        config.task = ConfigDict(dict(name="masked_rows", mask_ratio=0.5, predict="auto"))  # share of patches, masked
        return config
    config = common.get_config()
    config.task = ConfigDict(
        dict(
            name="table",
            predict="auto",  # 'classes', 'number' or 'auto': classes where there are words, or few whole numbers
            class_weights="none",  # or 'balanced': each class has the same part in the loss
            label_smoothing=0.0,  # share of the label that is spread over all classes
            threshold="accuracy",  # what the threshold of two classes is best by, on eval's rows: 'f1', ...; or 'half'
            beside="linear|boosting",  # models of scikit-learn, told beside ours; '' for none
        )
    )
    config.data = ConfigDict(
        dict(
            source="sklearn:breast_cancer",  # KIND:PLACE, as table:rows.csv, table:DIR or sklearn:wine
            train="all[:70%]",  # rows for training; all scaling is fitted to these alone
            eval="all[70%:85%]",  # rows that choose the best step and the threshold
            test="all[85%:]",  # rows that choose nothing; '' for none
            target="",  # the column to tell; '' for a usual name, or else the last
            drop="",  # columns that are not read, with commas between them
            balance="",  # or 'classes': each class of training is drawn equally often
            scaling="quantile",  # or 'standard', 'piecewise(bins=16)', 'original'
        )
    )
    config.model = ConfigDict(
        dict(
            name="TabularMixer",
            num_blocks=2,
            patch_size=3,  # columns
            hidden_dim=32,
            tokens_expansion=2.0,
            channels_expansion=2.0,
            column_dim=8,  # numbers that a column is told by; 0 to read columns as they are
            numbers="linear",  # how numbers are told: 'linear', 'periodic()', 'piecewise()'
            dropout_rate=0.1,
            stochastic_depth_rate=0.1,
            dtype="float32",
            scan=False,
            remat=False,
        )
    )
    config.steps = 400
    config.batch_size = 32
    config.loader.workers = 0
    config.loader.threads = 1  # rows are in memory
    config.optim.optimizer = "adamw(weight_decay=0.05)"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 40
    config.log_every = 50
    config.eval_every = config.checkpoint.every = 100
    config.checkpoint.best = "loss"
    if what == "original":
        return _original(config)
    if what != OURS:
        config.data.source = f"table:{what}"
        if Path(what).expanduser().is_dir():
            config.data.train, config.data.eval, config.data.test = "train[:85%]", "train[85%:]", "test"
        config.steps, config.batch_size = 4_000, 128
        config.eval_every = config.checkpoint.every = 200
    return config


def _original(config: Any) -> Any:
    """Return the document's system: its model, its scaling, Adam, and its 'sharp' schedule's warm-up and cosine."""
    config.data.source = "table:unsw_nb15"
    config.data.train, config.data.eval, config.data.test = "train[:85%]", "train[85%:]", "test"
    config.data.drop = "id"
    config.data.scaling = "original"
    config.task.threshold = "half"
    config.model.update(
        num_blocks=10,
        patch_size=3,  # 14 tokens
        hidden_dim=198,
        tokens_expansion=4.0,
        channels_expansion=0.5,
        column_dim=0,
        numbers="linear",
        dropout_rate=0.3,
        stochastic_depth_rate=0.3,
    )
    epoch = 17_000 // 32
    config.batch_size = 32
    config.steps = 100 * epoch
    config.optim.optimizer = "adam(b2=0.99)"
    config.optim.learning_rate = 1e-3  # the document has 0.1
    config.optim.schedule = f"cosine(decay_steps={15 * epoch}, floor=1e-6)"  # "sharp": 15 of 100 epochs
    config.init = "kaiming_uniform"
    config.optim.warmup_steps = 2 * epoch
    config.optim.clip_norm = 1.0
    config.eval_every = config.checkpoint.every = epoch
    return config
