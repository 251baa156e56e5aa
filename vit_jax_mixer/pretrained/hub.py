"""Models on the Hugging Face hub, as 'hf:OWNER/NAME', fetched by the hub's own library into its own cache.

A repository holds an export of ours (`card.json` beside the weights), or weights as timm lays them out (`config.json`
beside them). Nothing else of it is fetched: no code and, where there is another file of weights, no pickle.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_jax_mixer import files
from vit_jax_mixer.errors import UserError, printable

PREFIX = "hf:"
CARD = "card.json"  # of an export of ours
_TIMM = "config.json"
_DESCRIPTIONS = (_TIMM, CARD, "model.json")
_WEIGHTS = ("model.safetensors", "model.npz", "pytorch_model.bin")  # the first that is there
_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^\s@]+))?")


@dataclasses.dataclass(frozen=True)
class Described:
    """What timm's `config.json` says of weights: the evaluation they were made for, and their classes.

    Attributes:
        scale: of their resized images, as an operation.
        side: of the square images, in pixels.
        resized: the shorter side before the crop, in pixels.
        interpolation: of the resizing.
        class_names: none if the file has none.
        licence: as the file has it; '' if it has none.
    """

    scale: str
    side: int
    resized: int
    interpolation: str
    class_names: tuple[str, ...]
    licence: str

    @property
    def eval_ops(self) -> str:
        """The evaluation as operations of ours."""
        resize = f"resize_small({self.resized}, '{self.interpolation}')"
        return f"decode(3)|{resize}|center_crop({self.side})|{self.scale}"


def is_reference(reference: str) -> bool:
    """Return whether it names a repository on the hub."""
    return reference.startswith(PREFIX)


def fetch(reference: str) -> Path:
    """Return the folder of an export, or the file of weights, of a repository; what is in the hub's cache stays.

    Private repositories are read with the token of `hf auth login` or of the variable HF_TOKEN.

    Args:
        reference: 'hf:OWNER/NAME', or 'hf:OWNER/NAME@REVISION' for a branch, a tag or a commit.

    Raises:
        UserError: there is no such repository or revision, it may not be read, the hub cannot be reached and nothing
            is in the cache, or it has no weights that can be read.
    """
    if not (found := _NAME.fullmatch(reference)):
        raise UserError(f"{reference!r} names no model on the hub; write hf:OWNER/NAME, or hf:OWNER/NAME@REVISION.")
    repo, revision = found["repo"], found["revision"]
    folder = _snapshot(reference, repo, revision, [*_DESCRIPTIONS, _WEIGHTS[0]])
    for name in _WEIGHTS:
        if name != _WEIGHTS[0]:
            folder = _snapshot(reference, repo, revision, [*_DESCRIPTIONS, name])
        if (folder / name).is_file():
            return folder if (folder / CARD).is_file() else folder / name
    raise UserError(f"{reference} has none of {', '.join(_WEIGHTS)}; name a repository of weights of timm's or ours.")


def _snapshot(reference: str, repo: str, revision: str | None, names: list[str]) -> Path:
    hub = library()
    download = lambda: hub.snapshot_download(repo, revision=revision, allow_patterns=names, endpoint=endpoint())
    return Path(asked(reference, download))


def library() -> Any:
    """Return the hub's library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(
            "models on the Hugging Face hub need its library; install it with pip install huggingface_hub."
        ) from error
    return huggingface_hub


def endpoint() -> str | None:
    """Return the hub's address, if it is another than the usual."""
    return os.environ.get("HF_ENDPOINT") or None


def asked(reference: str, ask: Callable[[], Any]) -> Any:
    """Return what the hub answers.

    Raises:
        UserError: it refuses, or does not answer, with what a reader can do about it.
    """
    errors = library().errors
    try:
        return ask()
    except errors.GatedRepoError as error:
        raise UserError(f"{reference} is gated: ask for access on its page, then run `hf auth login`.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{reference}: the repository has no such revision; name a branch, a tag or a commit."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no {reference} on the hub, or it is private; mend the name, or run `hf auth login`."
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{reference} is no name of a repository: {_first_line(error)}.") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{reference} is not in the hub's cache, and the hub cannot be reached; check the network, or HF_ENDPOINT."
        ) from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"the hub refuses {reference}: {_first_line(error)}") from error
    except OSError as error:  # the network's errors of its library are such too
        raise UserError(f"cannot fetch {reference}: {_first_line(error)}; try again.") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable((lines or [type(error).__name__])[0][:200])


def beside(weights: Path) -> Described | None:
    """Return what timm's `config.json` beside a file of weights says; None if there is none, or it is another's.

    Raises:
        UserError: a field of it makes no sense.
    """
    path = weights.parent / _TIMM
    if weights.is_dir() or not path.is_file():
        return None
    config = files.read_json(path)
    about = config.get("pretrained_cfg")
    if not isinstance(config.get("architecture"), str) or not isinstance(about, dict):
        return None
    try:
        shape, mean, std = (tuple(about[name]) for name in ("input_size", "mean", "std"))
        side, crop = int(shape[1]), float(about.get("crop_pct") or 0.875)
        if not (shape == (3, side, side) and 0 < side < 10_000 and 0.1 < crop <= 1 and len(mean) == len(std) == 3):
            raise ValueError("its sizes are none of square colour images")
        mean, std = ([float(value) for value in values] for values in (mean, std))
        scale = f"normalize({tuple(mean)}, {tuple(std)})"
        names = tuple(str(name) for name in config.get("label_names") or ())
        method = str(about.get("interpolation") or "bicubic")
        if method not in ("bicubic", "bilinear"):
            raise ValueError(f"its interpolation {method!r:.40} is neither bicubic nor bilinear")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not say how its weights are evaluated ({_first_line(error)}); restore it."
        ) from error
    if mean == std == [0.5] * 3:
        scale = "value_range(-1, 1)"
    return Described(scale, side, math.floor(side / crop), method, names, str(about.get("license") or ""))
