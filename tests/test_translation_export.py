"""A model of text without this package: encoder and step as ONNX and StableHLO, and what searches with them."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from vit_jax_mixer import predictions
from vit_jax_mixer.data.sources.text import in_words
from vit_jax_mixer.export import files
from vit_jax_mixer.predictors.text import Text
from vit_jax_mixer.trained import Trained

LINES = ["", *(" ".join(str(n)) for n in (7, 30, 999, 12345, 9876543, 100))]
ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in "vit_jax_mixer flax orbax grain".split():
            raise ImportError(f"{name} is not to be used")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import run_translation

run_translation.main(["-"])
"""


def model_of(mixing, beams):
    """A model with random weights, of which EOS is likely enough to end most translations."""
    pytest.importorskip("sentencepiece")
    from vit_jax_mixer.data.text.vocabulary import create

    numbers = range(100, 200)
    pieces = create("unigram(40)", [text for n in numbers for text in (" ".join(str(n)), in_words(n))], "x")
    fields = dict(
        name="Seq2Seq", vocab_size=len(pieces), max_length=24, num_encoder_layers=1, num_decoder_layers=2,
        hidden_dim=16, mlp_dim=16, num_heads=2, self_mixing=mixing,
    )  # fmt: skip
    about = Text(fields, pieces.text, "", "", beams, "length(0.6)")
    module, rng = about.create("x"), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.6, x.shape).astype(np.float32), about.shapes(module))
    return Trained(about, module, params)


def told(trained, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(LINES) + "\n")
    source = trained.about.open([str(tmp_path / "lines.txt")])
    return [one.translation for one in predictions.predict(trained, source, top=1, batch_size=4, on_bad=pytest.fail)]


SLOW = [
    (mixing, form, beams) for mixing in ("linear", "attention") for form in ("onnx", "stablehlo") for beams in (1, 3)
]
FAST = SLOW.pop(1)


@pytest.mark.parametrize(
    ("mixing", "form", "beams"), [FAST, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]
)
def test_an_export_translates_as_predict_does(tmp_path, mixing, form, beams):
    pytest.importorskip("onnxruntime")
    trained = model_of(mixing, beams)
    (tmp_path / "out").mkdir()
    written = files.WRITERS[form](trained, tmp_path / "out", ("cpu",))
    trained.about.write(tmp_path / "out")
    assert {f"encoder.{form}", f"step.{form}", "run_translation.py"} <= {*written.names}
    assert written.difference < 1e-5
    result = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", ALONE, str(tmp_path / "out")],
        input="\n".join(LINES), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    expected = told(trained, tmp_path)
    assert len({*expected}) > 3
    assert result.stdout.split("\n")[:-1] == expected
