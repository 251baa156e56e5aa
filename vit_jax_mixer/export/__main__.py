"""Export a trained model: StableHLO, ONNX, safetensors.

  python -m vit_jax_mixer.export --model=runs/digits digits_export
  python -m vit_jax_mixer.export --model=runs/digits --format=onnx digits_onnx

The folder then holds the model as StableHLO, ONNX and safetensors, each checked against the model
itself, and a model card that says how to run them. It appears when it is complete.
"""

from pathlib import Path

from absl import flags

from vit_jax_mixer import cli
from vit_jax_mixer.errors import UserError

_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "A published name, as Mixer-B/16:imagenet1k; a workdir; a file; or hf:OWNER/NAME.",
    flag_values=_FLAGS,
)
_FORMAT = flags.DEFINE_list(
    "format", None, "Of stablehlo, onnx, safetensors; all that can be written, if not given.", flag_values=_FLAGS
)
_PLATFORMS = flags.DEFINE_list(
    "platforms", ["cpu", "cuda", "tpu"], "What the StableHLO runs on; rocm is known too.", flag_values=_FLAGS
)
_FOLD = flags.DEFINE_bool(
    "fold", False, "Merge the Aff and layer scales of a ResMLP with their neighbours.", flag_values=_FLAGS
)
_PUSH = flags.DEFINE_string(
    "push", "", "Repository on the Hugging Face hub, USER/NAME, to which the export goes as well.", flag_values=_FLAGS
)
_PRIVATE = flags.DEFINE_bool("private", False, "Whether a repository that --push makes is private.", flag_values=_FLAGS)
_FORCE = flags.DEFINE_bool("force", False, "Replace the folder if it is an export.", flag_values=_FLAGS)


def main(argv: list[str]) -> None:
    """Export the model to the folder that is named."""
    if not _MODEL.value:
        raise UserError("no --model given; name one, as --model=runs/digits or --model=Mixer-B/16:imagenet1k.")
    if len(argv) != 2:
        raise UserError("name one folder to write, as in `python -m vit_jax_mixer.export --model=runs/digits out`.")
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    from vit_jax_mixer.export import push
    from vit_jax_mixer.export.writing import export

    if _PUSH.value:
        push.check(_PUSH.value)
    for line in export(
        _MODEL.value,
        argv[1],
        formats=_FORMAT.value,
        platforms=_PLATFORMS.value,
        fold=_FOLD.value,
        force=_FORCE.value,
    ):
        print(line)
    if _PUSH.value:
        for line in push.push(Path(argv[1]).expanduser(), _PUSH.value, private=_PRIVATE.value):
            print(line)


if __name__ == "__main__":
    cli.run(main, _FLAGS)
