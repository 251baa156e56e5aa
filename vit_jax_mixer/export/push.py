"""An export on the Hugging Face hub: `python -m vit_jax_mixer.export --push=USER/NAME ...`."""

from pathlib import Path
from typing import Any

from vit_jax_mixer import files
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.export.card import TEXT
from vit_jax_mixer.pretrained import hub
from vit_jax_mixer.trained import CARD

_FAMILIES = {"MlpMixer": "mlp-mixer", "ResMlp": "resmlp", "GMlp": "gmlp", "TabularMixer": "mlp-mixer"}


def check(repo: str) -> None:
    """Say before the work that a repository cannot be one.

    Raises:
        UserError: it is no name, the hub's library is not installed, or there is no token.
    """
    api = hub.library()
    try:
        api.utils.validate_repo_id(repo)
        named = "/" in repo
    except api.errors.HFValidationError:
        named = False
    if not named:
        raise UserError(f"--push: {repo!r} names no repository; write USER/NAME.")
    if not api.get_token():
        raise UserError("--push needs a token that may write: run `hf auth login`, or set HF_TOKEN.")


def push(folder: Path, repo: str, *, private: bool) -> list[str]:
    """Send an export to a repository, which is made if it is not there, in one commit; return lines about it.

    Args:
        folder: the export.
        repo: 'USER/NAME'.
        private: make the repository, if it is new, one that others do not see.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    library = hub.library()
    api = library.HfApi(endpoint=hub.endpoint())
    sent = [path for path in sorted(folder.iterdir()) if path.is_file()]
    operations = [library.CommitOperationAdd(path.name, path) for path in sent]
    operations.append(library.CommitOperationAdd("README.md", page(folder).encode()))

    def send() -> Any:
        api.create_repo(repo, private=private, exist_ok=True)
        return api.create_commit(repo, operations, commit_message=f"Export of {folder.name}")

    done = hub.asked(hub.PREFIX + repo, send)
    return [f"pushed to {done.repo_url}; use it as --model={hub.PREFIX}{repo}"]


def page(folder: Path) -> str:
    """Return the repository's page: what the hub reads of a model, then the export's card."""
    card = files.read_json(folder / CARD)
    model, outputs = str(card["model"].get("name", "")), card["outputs"]
    licence = str(card["licence"] or "").lower()
    about = hub.library().ModelCardData(
        license=licence or None,
        library_name="vit_jax_mixer",
        pipeline_tag=_purpose(card["input"]["name"], outputs),
        tags=sorted({"jax", "flax", *filter(None, [_FAMILIES.get(model)])}),
    )
    return f"---\n{about.to_yaml()}\n---\n\n{files.read_text(folder / TEXT, files.MOST_TEXT)}"


def _purpose(inputs: str, outputs: dict[str, Any]) -> str | None:
    """Return the hub's word for what the model does, or None for what it has no word for."""
    classifies = "probabilities" in outputs
    words = {
        ("images", True): "image-classification",
        ("images", False): "image-feature-extraction",
        ("rows", True): "tabular-classification",
        ("rows", False): "tabular-regression",
    }
    return words.get((inputs, classifies))
