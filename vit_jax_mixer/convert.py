"""Convert weights between formats.

  python -m vit_jax_mixer.convert Mixer-B_16.npz mixer.safetensors
  python -m vit_jax_mixer.convert runs/digits digits.npz

Formats of DST go by the suffix: .npz, .safetensors, none for a folder of Orbax. SRC may be any of
them, a PyTorch .pth, or a workdir; its names tell the family. Where it holds several trees of
parameters, the running mean is taken and that is said; SRC#raw, SRC#ema or SRC#NAME takes another.
WORKDIR#last5 is the mean of a run's last five checkpoints.
Values stay the same to the bit.
"""

from pathlib import Path

from absl import flags

from vit_jax_mixer import cli
from vit_jax_mixer.errors import UserError

_FLAGS = flags.FlagValues()
_TO = flags.DEFINE_enum(
    "to",
    None,
    ["timm", "official"],
    "Names in DST; timm's in .safetensors and the official ones elsewhere by default.",
    flag_values=_FLAGS,
)
_FORCE = flags.DEFINE_bool("force", False, "Replace DST if it exists.", flag_values=_FLAGS)


def main(argv: list[str]) -> None:
    """Convert the file that is named first to the one that is named second."""
    if len(argv) != 3:
        raise UserError("name two files, as in `python -m vit_jax_mixer.convert resmlp.pth resmlp.safetensors`.")
    print(convert(argv[1], argv[2], _TO.value, force=_FORCE.value))


def convert(source: str | Path, target: str | Path, to: str | None = None, *, force: bool = False) -> str:
    """Write the weights in ``source`` to ``target``, and return a line that says what was done.

    Args:
        source: a file or folder that `pretrained.load` reads.
        target: a ``.npz`` or ``.safetensors`` file, or a folder.
        to: 'timm', 'official', or None for what the target's suffix usually holds.
        force: replace the target.

    Raises:
        UserError: the source cannot be read, the target not be written, or the family has no such names.
    """
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    from vit_jax_mixer import pretrained
    from vit_jax_mixer.pretrained import formats

    target = Path(target).expanduser()
    formats.check_target(target, force=force)
    weights = pretrained.read(source)
    flat, family, write_as = pretrained.rename(weights.tree, target.suffix.lower(), to)
    formats.write(target, flat, force=force)
    lost = ""
    if weights.activation != "gelu":
        lost = f"; its activation, {weights.activation}, is not in {target}, whose readers take GELU: say it to them"
    count = sum(value.size for value in flat.values())
    return (
        f"{source} -> {target}: {family or 'a model of ours'}, {count:,} parameters in {len(flat)} arrays, "
        f"names {weights.convention} -> {write_as}" + (f"; {weights.origin}" if weights.origin else "") + lost
    )


if __name__ == "__main__":
    cli.run(main, _FLAGS)
