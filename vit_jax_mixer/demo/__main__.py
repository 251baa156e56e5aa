"""Try models on a page in the browser.

  python -m vit_jax_mixer.demo --model=runs/digits
  python -m vit_jax_mixer.demo --model=runs/one --model=runs/two
  python -m vit_jax_mixer.demo --model=runs/digits --to=space

The page asks for what the models read: a pad to draw digits on, a file for photos, a form for the row of a table, lines
for a translation. Photos come back with a map of what speaks for their class, where the model has one. Models that are
named together answer side by side. Only this machine reaches the page, unless --host says otherwise.

With --to=DIR no page is shown: the folder gets the files of a Space of the Hugging Face hub, with the models in it.
"""

import time
from importlib import metadata
from pathlib import Path

from absl import flags

from vit_jax_mixer import cli
from vit_jax_mixer.errors import UserError

_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_multi_string(
    "model", [], "A published name, a workdir, an export or a file; may be given again.", flag_values=_FLAGS
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets the network in, without a password.", flag_values=_FLAGS
)
_PORT = flags.DEFINE_integer(
    "port", 0, "Port to listen on; the first free one from 7860 on, if 0.", 0, 65535, flag_values=_FLAGS
)
_TO = flags.DEFINE_string("to", "", "A folder for the files of a Space.", flag_values=_FLAGS)


def main(argv: list[str]) -> None:
    """Show the page until Ctrl-C, or write the files of a Space."""
    if argv[1:]:
        raise UserError(f"{argv[1]!r} is no flag; name models as --model=runs/digits.")
    if not _MODEL.value:
        raise UserError("no --model given; name one, as --model=runs/digits, or several.")
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    from vit_jax_mixer.demo import page

    page.gradio()
    if _TO.value:
        from vit_jax_mixer.demo import space

        target = Path(_TO.value).expanduser()
        print(f"wrote {', '.join(space.write(_MODEL.value, target, metadata.version('gradio')))} to {target}")
        return
    blocks = page.build(_MODEL.value)
    listening = {"server_name": _HOST.value, "server_port": _PORT.value or None, "share": False}
    try:
        _, url, _ = blocks.launch(**listening, **page.style(), prevent_thread_lock=True, quiet=True)
    except OSError as error:
        raise UserError(f"cannot listen on {_HOST.value}, port {_PORT.value or '7860 to 7959'} ({error}).") from error
    print(f"the page is at {url} until Ctrl-C", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    cli.run(main, _FLAGS, interrupted="the page is closed.")
