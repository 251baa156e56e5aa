"""The sequence-to-sequence ResMLP of the paper (arXiv 2105.03404, section 3.6) on WMT'14 English-German or -French.

    python -m vit_jax_mixer.main --config=configs/translate_wmt.py:en-de --config.data.source=text:DIR,en,de

DIR has train.en, train.de, validation.en and validation.de, gzipped or not; tfds:wmt14_translate/de-en,source=en and
hf:wmt/wmt14:de-en,source=en are the same pairs. The paper has width 512, hidden 2048, 6 or
12 layers, layer scale 0.2, label smoothing 0.1, dropout 0.15 (en-de) or 0.1 (en-fr), Adagrad with rate 0.2 and 32,000
steps of linear warm-up, a joint BPE of 32,000 (en-de: of Ott et al. 2018), and beam 4; 26.4 (en-de) and 40.3 (en-fr)
tokenised BLEU with 6 layers, which sacrebleu's figures are not comparable with. It leaves open, and chosen here are:
the batch (25,000 pieces a side), the steps (150,000), the schedule after the warm-up (constant: Adagrad lowers the
rate itself), the longest sentence (256 pieces), 8 heads, sinusoidal positions, the vocabulary of en-fr (as en-de's).
It has not been run here. For the mean of the last ten checkpoints: --config.checkpoint.keep=10, then
--model=WORKDIR#last10.
"""

from configs import translate
from vit_jax_mixer import specs

_DROPOUT = {"en-de": 0.15, "en-fr": 0.1}


def get_config(what: str = "en-de"):
    """Return the config for 'en-de' or 'en-fr'."""
    dropout = specs.lookup(_DROPOUT, what, "configs/translate_wmt.py")
    config = translate.get_config()
    config.data.source = f"text:wmt14,{what.replace('-', ',')}"
    config.data.train, config.data.eval = "train", "validation"
    config.data.vocabulary, config.data.shapes = "bpe(32000)", 8
    config.model.update(
        max_length=256,
        num_encoder_layers=6,
        num_decoder_layers=6,
        hidden_dim=512,
        mlp_dim=2048,
        num_heads=8,
        dropout_rate=dropout,
        dtype="bfloat16",
    )
    config.steps = 150_000
    config.batch_size = 25_000
    config.optim.optimizer = "adagrad"
    config.optim.learning_rate = 0.2
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 32_000
    config.optim.clip_norm = 0.0
    config.eval_every = config.checkpoint.every = 5_000
    return config
