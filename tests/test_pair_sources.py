"""Translation sets of TFDS and Hugging Face, prepared here in their own formats."""

import datasets
import huggingface_hub.constants
import pytest

from vit_jax_mixer.data import record
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.errors import UserError

PAIRS = [(f"house {i}", f"  Haus\n{i}") for i in range(9)]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def tfds_set(tmp_path_factory):
    """A folder as TFDS prepares it."""
    import tensorflow_datasets as tfds

    class TwoTongues(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.Translation(("de", "en"))
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("de", "en"))

        def _split_generators(self, dl_manager):
            return {"train": ((i, {"en": en, "de": de}) for i, (en, de) in enumerate(PAIRS))}

        def _generate_examples(self):
            raise NotImplementedError

    builder = TwoTongues(data_dir=tmp_path_factory.mktemp("tfds"))
    builder.download_and_prepare(file_format="array_record")
    return builder.data_path


@pytest.fixture(scope="module")
def hf_set(tmp_path_factory):
    """A folder as `save_to_disk` writes it: of one column with both languages."""
    folder = tmp_path_factory.mktemp("hf") / "saved"
    features = datasets.Features({"id": datasets.Value("int64"), "translation": datasets.Translation(["de", "en"])})
    rows = {"id": range(len(PAIRS)), "translation": [{"en": en, "de": de} for en, de in PAIRS]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(str(folder))
    return folder


def told(source):
    return sorted((e["source"], e["target"]) for e in map(source.examples.__getitem__, range(len(source.examples))))


@pytest.mark.parametrize("kind", ["tfds", "hf"])
def test_a_translation_set_goes_either_way(kind, tfds_set, hf_set):
    place = {"tfds": tfds_set, "hf": hf_set}[kind]
    from_german = [(" ".join(de.split()), en) for en, de in PAIRS]
    source = open_source(f"{kind}:{place}", "train")
    assert told(source) == sorted(from_german)
    assert "from de to en; for others, end the source's name with ,source=en,target=de" in source.notes[0]
    for named in (",source=en,target=de", ",source=en", ",target=de"):
        source = open_source(f"{kind}:{place}{named}", "train")
        assert told(source) == sorted((en, de) for de, en in from_german)
        assert not source.notes
    assert open_source(f"{kind}:{place}", "train[:4]").examples[3]["source"].startswith("Haus")
    assert record.fingerprint(open_source(f"{kind}:{place}", "train")) != record.fingerprint(source)
    with pytest.raises(UserError, match=r"has no target text 'fr'.*It has de, en"):
        open_source(f"{kind}:{place},target=fr", "train")
    with pytest.raises(UserError, match=r"has no label; name ,source=NAME,target=NAME alone"):
        open_source(f"{kind}:{place},label=en,target=de", "train")
    with pytest.raises(UserError, match=r"say which texts are a pair"):
        open_source(f"{kind}:{place},source=en,target=en", "train")


def test_two_columns_of_text_are_a_pair_by_name(tmp_path):
    rows = {"en": [en for en, _ in PAIRS], "de": [de for _, de in PAIRS], "fr": ["un"] * 8 + [None]}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "train.parquet"))
    source = open_source(f"hf:{tmp_path / 'train.parquet'},source=en,target=fr", "train")
    assert source.examples[0] == {"source": "house 0", "target": "un"}
    with pytest.raises(UserError, match=r"its target is empty"):
        source.examples[8]
    assert source.where(8).endswith("row 8")
    with pytest.raises(UserError, match=r"say which texts are a pair.* it has en, de, fr"):
        open_source(f"hf:{tmp_path / 'train.parquet'},source=en", "train")


@pytest.mark.slow
def test_a_run_learns_from_one(tfds_set, tmp_path):
    pytest.importorskip("sentencepiece")
    from configs import translate
    from vit_jax_mixer.train import train_and_evaluate

    config = translate.get_config()
    config.data.update(source=f"tfds:{tfds_set},source=en", eval="train[:3]", vocabulary="unigram(30)")
    config.model.update(num_encoder_layers=1, num_decoder_layers=1, hidden_dim=8, mlp_dim=8)
    config.update(steps=2, eval_every=2, batch_size=64, eval_batch_size=4)
    config.optim.warmup_steps = 1
    assert int(train_and_evaluate(config, tmp_path / "run").step) == 2
