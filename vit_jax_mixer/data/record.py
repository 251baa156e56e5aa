"""What a run's data are, in a few figures that tell when they have changed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vit_jax_mixer import classes
from vit_jax_mixer.data.pipeline import Dataset
from vit_jax_mixer.data.sources.base import Source, traits

Record = dict[str, dict[str, Any]]


def of(train_data: Dataset, eval_data: Mapping[str, Dataset], digests: Mapping[str, str]) -> Record:
    """Return the number of examples, the classes and the fingerprint of all that a run reads.

    ``digests`` are those of what it reads beside, by name.
    """
    datasets = {"training": train_data, **{f"evaluation on {name}": dataset for name, dataset in eval_data.items()}}
    beside = {name: {"digest": digest} for name, digest in digests.items()}
    return {name: of_source(dataset.source) for name, dataset in datasets.items()} | beside


def of_source(source: Source) -> dict[str, Any]:
    """Return the number of examples, the classes and the fingerprint of a source."""
    return {
        "examples": len(source.examples),
        "classes": list(source.class_names),
        "fingerprint": fingerprint(source),
    }


def fingerprint(source: Source) -> str:
    """Return a digest of what tells the examples from others (`traits`)."""
    digest = hashlib.blake2b(digest_size=16)
    for trait in traits(source.examples):
        digest.update(f"{len(trait)},".encode())
        digest.update(trait)
    return digest.hexdigest()


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each dataset that is another one; what only one of the records has is passed over.

    Raises:
        ValueError: the old one is no record.
    """
    both = [name for name in new if name in old]
    return [f"{name}: {phrase}" for name in both if (phrase := _change(old[name], new[name]))]


def differences(old: str, new: str) -> str:
    """Return what `changes` does of two records in JSON, as one text."""
    return "; ".join(changes(json.loads(old), json.loads(new)))


def _change(old: Any, new: Mapping[str, Any]) -> str:
    if "digest" in new:
        return "" if isinstance(old, Mapping) and old.get("digest") == new["digest"] else "it is another"
    was = old.get("classes", []) if isinstance(old, Mapping) else None
    if not (isinstance(was, (list, tuple)) and all(isinstance(name, str) for name in was)):
        raise ValueError("the record of the data is damaged; remove it.")
    if was and (phrase := classes.changed(was, new["classes"])):
        return phrase
    if old.get("examples", new["examples"]) != new["examples"]:
        return f"{new['examples']} examples instead of {old['examples']}"
    if old.get("fingerprint", new["fingerprint"]) != new["fingerprint"]:
        return "the same number of examples, but some have another name, label or size"
    return ""
