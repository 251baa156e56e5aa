"""Translation by a sequence-to-sequence ResMLP, of your own pairs or, without any, of numbers to their names.

    python -m vit_jax_mixer.main --config=configs/translate.py
    python -m vit_jax_mixer.main --config=configs/translate.py:pairs.tsv
    python -m vit_jax_mixer.main --config=configs/translate.py:DIR

It needs the extra 'text': pip install -e '.[text]'. Pairs stand in a .tsv file, a line each with a tab between, gzipped
or not, of which two parts in a hundred are held back; or in a folder with train.tsv and validation.tsv.
--config.model.self_mixing=attention makes the Transformer of the same size.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(what: str = ""):
    """Return the config for numbers and their names, or for the pairs in a file or folder."""
    config: Any = common.get_config()
    config.task = ConfigDict(
        dict(
            name="translation",
            label_smoothing=0.1,  # share of the label that is spread over all other pieces
            beam_size=4,  # of who uses the model; evaluations of training take the likeliest piece each time
            penalty="length(0.6)",  # what scores are divided by: the length to that power, or 'gnmt(0.6)'
            samples=8,  # translations that each evaluation writes to the workdir
        )
    )
    config.data = ConfigDict(
        dict(
            source="numbers:20000",  # KIND:PLACE, as text:pairs.tsv, text:train.en,train.de or text:DIR,en,de
            train="train",  # pairs for training; the vocabulary is made of them alone
            eval="test[:500]",  # pairs for evaluation, which names its metrics, as test/bleu
            vocabulary="unigram(64)",  # or 'bpe(8000)', or a SentencePiece model, as 'pieces.model'
            shapes=3,  # lengths that pairs are padded to, at most 8: the step is compiled for each
            multiple=8,  # of the pairs of a batch: of devices times accum_steps
            on_bad_example="skip",  # pass over bad or too long pairs, and count them; or 'stop'
        )
    )
    config.model = ConfigDict(
        dict(
            name="Seq2Seq",
            max_length=32,  # pieces of a sentence, with the one that ends it
            num_encoder_layers=2,
            num_decoder_layers=2,
            hidden_dim=64,
            mlp_dim=128,
            num_heads=4,
            dropout_rate=0.0,
            self_mixing="linear",  # or 'attention': a Transformer
            layerscale_init=0.2,
            positions="sinusoidal",
            dtype="float32",
        )
    )
    config.steps = 500
    config.batch_size = 1_024  # pieces of a side, padding and all: a batch has as many pairs as come to that
    config.eval_batch_size = 128  # pairs
    config.loader.workers = 0
    config.loader.threads = 1  # pairs are in memory
    config.optim.optimizer = "adam(b2=0.98)"
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 100
    config.log_every = 50
    config.eval_every = config.checkpoint.every = 250
    config.checkpoint.best = "loss"
    if what:
        folder = Path(what).expanduser().is_dir()
        config.data.source = f"text:{what}"
        config.data.train, config.data.eval = ("train", "validation") if folder else ("all[:98%]", "all[98%:]")
        config.data.vocabulary, config.data.shapes = "bpe(4000)", 5
        config.model.update(max_length=128, num_encoder_layers=3, num_decoder_layers=3, hidden_dim=128, mlp_dim=512)
        config.model.dropout_rate = 0.1
        config.steps, config.batch_size = 8_000, 2_048
        config.optim.learning_rate, config.optim.warmup_steps = 2e-3, 800
        config.optim.schedule = "inverse_sqrt"
        config.eval_every = config.checkpoint.every = 1_000
    return config
