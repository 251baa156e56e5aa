"""The files of a Space of the Hugging Face hub, which shows a page; they need nothing of this machine."""

import re
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import vit_jax_mixer
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.export.writing import export
from vit_jax_mixer.trained import open_model

_APP = '''\
"""A page to try models on; made by `vit-mixer demo --to`."""

from vit_jax_mixer.demo import page

page.build({models!r}).launch(**page.style())
'''
_HEADER = """\
---
title: {title}
emoji: 🔎
colorFrom: indigo
colorTo: red
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
pinned: false
---

{models}, on a page by vit_jax_mixer {version}. `python app.py` shows it on this machine, after
`pip install -r requirements.txt gradio=={gradio}`.
"""


def write(references: Sequence[str], target: Path, gradio: str) -> list[str]:
    """Write the files of a Space, with the models and this package, and return their names.

    Args:
        references: of the models.
        target: a folder that is not there, or empty.
        gradio: the release that the page is written for.

    Raises:
        UserError: the folder holds something, or cannot be written, or a model cannot be exported.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"--to={target} holds something already; name a folder that is empty, or not there.")
    names = ["model", *(f"model_{number}" for number in range(2, len(references) + 1))]
    extras = {open_model(reference).about.extra for reference in references}
    try:
        target.mkdir(parents=True, exist_ok=True)
        for reference, name in zip(references, names, strict=True):
            export(reference, target / name, formats=["safetensors"])
        package = Path(vit_jax_mixer.__file__).parent
        shutil.copytree(package, target / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        (target / "app.py").write_text(_APP.format(models=names))
        (target / "requirements.txt").write_text("".join(f"{line}\n" for line in _requirements(extras)))
        title = Path(references[0]).name.replace(":", " ")
        header = _HEADER.format(
            title=f'"{title}"',
            gradio=gradio,
            python=f"{sys.version_info[0]}.{sys.version_info[1]}",
            models=" and ".join(f"`{Path(reference).name}`" for reference in references),
            version=vit_jax_mixer.__version__,
        )
        (target / "README.md").write_text(header, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror or error}); choose another --to.") from error
    return sorted(path.name for path in target.iterdir())


def _requirements(extras: set[str]) -> list[str]:
    """Return what this package requires, and what some of its extras do."""
    found = []
    for line in metadata.requires("vit_jax_mixer") or []:
        requirement, _, marker = line.partition(";")
        of = re.search(r"""extra == ["'](\w+)["']""", marker)
        if of is None:
            found.append(line)
        elif of[1] in extras:
            found.append(requirement.strip())
    return found
