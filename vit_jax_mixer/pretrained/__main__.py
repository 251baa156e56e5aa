"""List the published weights, or fetch some.

  python -m vit_jax_mixer.pretrained
  python -m vit_jax_mixer.pretrained Mixer-B/16:imagenet21k

Fetched files are kept in the folder that the environment variable VIT_JAX_MIXER_CACHE names, or else in
~/.cache/vit_jax_mixer (or that of XDG_CACHE_HOME), and are not fetched again. The path is printed. An address
(https://, gs://) or a repository on the Hugging Face hub (hf:OWNER/NAME) will do as well as a name.
"""

from absl import flags

from vit_jax_mixer import cli, startup
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.pretrained import download, hub, registry

_FLAGS = flags.FlagValues()
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Read a file that is already there anew, and compare its hash.", flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Print the table, or fetch what is named."""
    if len(argv) == 1:
        print("\n".join(table()))
        return
    if len(argv) > 2:
        raise UserError("name one file, as in `python -m vit_jax_mixer.pretrained Mixer-B/16:imagenet21k`.")
    if hub.is_reference(argv[1]):
        print(hub.fetch(argv[1]))
    elif download.is_address(argv[1]):
        print(download.fetch(argv[1], verify=_VERIFY.value))
    else:
        print(registry.find(argv[1]).fetch(verify=_VERIFY.value))


def table() -> list[str]:
    """Return aligned lines, one for each file, and one about the cache."""
    rows = [("reference", "input", "classes", "parameters", "top-1 %", "source", "licence", "cached")]
    for entry in registry.published():
        rows.append(
            (
                entry.reference,
                "x".join(map(str, entry.input_size)),
                f"{entry.num_classes or '-'}",
                f"{entry.parameters:,}",
                "-" if entry.top1 is None else f"{entry.top1:.1f}",
                entry.source,
                entry.licence,
                "yes" if download.place(entry.url).is_file() else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<>>><<<", widths, strict=True))
    lines = [layout.format(*row).rstrip() for row in rows]
    return [*lines, f"\ncache: {startup.cache_folder()} (set {startup.CACHE} for another)"]


if __name__ == "__main__":
    cli.run(main, _FLAGS)
