"""A trained model in the formats of others: a folder that runs without this package.

| format | files | for |
|---|---|---|
| `stablehlo` | ``model.stablehlo``, ``model.npz``, ``run_stablehlo.py`` | JAX alone, on any device |
| `onnx` | ``model.onnx`` | ONNX Runtime and others |
| `safetensors` | ``model.safetensors`` | timm and PyTorch, and `trained.open_model` |

Beside them stand ``model.json``, ``card.json`` and ``MODEL_CARD.md``. The first two take bytes of
images, u8[b, h, w, c] for any b, and give what `Trained.outputs` gives, in float32. A model of text has ``encoder`` and
``step`` in the place of ``model``, and ``run_translation.py`` (`predictors.translation.programs`).
"""
