"""Convert weights: `python -m vit_jax_mixer.convert SRC DST`, as Mixer-B_16.npz mixer.safetensors.

Formats go by the suffix: .npz, .safetensors, .pth (read only), none for a folder of Orbax. SRC may
be a workdir. The names in it tell the family. Values stay the same to the bit.
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
    tree, read_as = pretrained.read(source)
    flat, family, write_as = pretrained.rename(tree, target.suffix, to)
    formats.write(target, flat, force=force)
    count = sum(value.size for value in flat.values())
    return (
        f"{source} -> {target}: {family or 'a model of ours'}, {count:,} parameters in {len(flat)} arrays, "
        f"names {read_as} -> {write_as}"
    )


if __name__ == "__main__":
    cli.run(main, _FLAGS)
