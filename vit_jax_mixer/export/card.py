"""What goes with an export: ``card.json`` for programs, and the same as ``MODEL_CARD.md`` for people."""

import dataclasses
import datetime
import hashlib
import html
import json
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from vit_jax_mixer import __version__, files, pretrained
from vit_jax_mixer.checkpoints import best, checksums
from vit_jax_mixer.errors import UserError, printable
from vit_jax_mixer.export.files import Written
from vit_jax_mixer.predictors.base import ForCard
from vit_jax_mixer.pretrained import folder as checkpoints
from vit_jax_mixer.pretrained import trees
from vit_jax_mixer.trained import CARD, Trained

TEXT = "MODEL_CARD.md"
Card = dict[str, Any]


def write(trained: Trained, reference: str, folder: Path, written: Mapping[str, Written]) -> None:
    """Write both cards.

    Args:
        trained: the model as it was exported.
        reference: what was asked for.
        folder: holds the other files.
        written: by format.
    """
    about = trained.about
    example, more = about.input(), about.card()
    inputs = jax.ShapeDtypeStruct((1, *example.shape), example.dtype)
    outputs = jax.eval_shape(trained.outputs, trained.params, inputs)
    card = {
        "model": dict(about.model),
        "exported_from": reference,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "source": about.source,
        "licence": about.licence,
        "parameters": sum(value.size for value in jax.tree.leaves(trained.params)),
        "input": {"name": f"{about.field}s", "dtype": example.dtype.name, "shape": ["b", *example.shape], **more.input},
        "outputs": {
            name: {"dtype": like.dtype.name, "shape": ["b", *like.shape[1:]]} for name, like in outputs.items()
        },
        **more.fields,
        **_history(pretrained.locate(trees.split(reference)[0]), trained.step),
        "formats": {name: dataclasses.asdict(done) for name, done in written.items()},
        "versions": {
            "vit_jax_mixer": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "flax", *(("onnx",) if "onnx" in written else ()))},
        },
        "files": {path.name: _fingerprint(path) for path in sorted(folder.iterdir())},
    }
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    (folder / CARD).write_text(text, encoding="utf-8", errors="backslashreplace")
    (folder / TEXT).write_text(_text(card, about.meanings(), more), encoding="utf-8")


def _history(path: Path, step: int | None) -> dict[str, Any]:
    """Return the config of the run that the weights come from, and the evaluation of their checkpoint.

    Raises:
        UserError: what a run or an export wrote of it is damaged.
    """
    path = checkpoints.run_of(path)
    if (path / CARD).is_file():
        card = files.read_json(path / CARD)
        config, evaluation = card.get("config"), card.get("evaluation")
    else:
        known = (path / "config.json").is_file()
        config = checksums.read_json(path / "config.json", may_lack_it=True) if known else None
        evaluation = _evaluation_of(path, step)
    if not isinstance(config, dict | None) or not (evaluation is None or _is_evaluation(evaluation)):
        raise UserError(f"the config or evaluation in {path / CARD} is none; mend or remove the file.")
    return {"config": config, "evaluation": evaluation}


def _evaluation_of(workdir: Path, step: int | None) -> dict[str, Any] | None:
    """Return the scores of the checkpoint whose parameters are taken, with its step; None if there are none."""
    scores = {} if step is None else best.read(workdir / "checkpoints" / str(step))
    return {"step": step, **scores} if scores else None


def _is_evaluation(line: Any) -> bool:
    """Say whether something is a dict of numbers by name, one of them a whole step."""
    return (
        isinstance(line, dict)
        and isinstance(line.get("step"), int)
        and all(isinstance(value, int | float) for value in line.values())
    )


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _text(card: Card, meanings: Mapping[str, str], more: ForCard) -> str:
    model = card["model"]
    fields = ", ".join(f"{name} {value}" for name, value in model.items() if name not in ("name", "num_classes"))
    facts = {
        "Parameters": f"{card['parameters']:,}",
        "Exported from": _plain(f"{card['exported_from']}, {card['date']}"),
        "Weights": _plain(card["source"]),
        "Licence": _plain(card["licence"] or "not stated"),
        **more.facts,
        "Evaluation": _plain(_evaluation(card["evaluation"])),
        "Computes in": "float32",
        "Made with": ", ".join(f"{name} {version}" for name, version in card["versions"].items()),
    }
    name = model.get("name", "A model")  # which a user's own predictor need not name
    table = _table(("Model", _plain(name + (f" ({fields})" if fields else ""))), facts.items())
    sections = [f"# {_plain(name)}", table, _input(card, more.explained), _outputs(card, meanings)]
    sections += [_run(card, name, more) for name in card["formats"]]
    sections += ["## Files", _files(card)]
    if card["config"]:
        config = printable(json.dumps(card["config"], indent=2, ensure_ascii=False), keep="\n")
        sections += ["## Config of the training", _code("json", config)]
    return "\n\n".join(sections) + "\n"


def _plain(text: Any) -> str:
    """Return words from outside, as they are to be read: no HTML, Markdown or control characters."""
    escaped = re.sub(r"[\\`*\[\]|~]|\b_\B|\B_\b", r"\\\g<0>", printable(text))
    return html.escape(escaped, quote=False)


def _evaluation(scores: dict[str, Any] | None) -> str:
    if not scores:
        return "not known"
    values = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if name != "step")
    return f"{values}, after {scores['step']:,} steps"


def _input(card: Card, explained: str) -> str:
    shape = ", ".join(map(str, card["input"]["shape"]))
    return f"## Input\n\n`{card['input']['name']}`: {card['input']['dtype']} [{shape}]{explained}"


def _outputs(card: Card, meanings: Mapping[str, str]) -> str:
    rows = [
        (f"`{name}`", f"{like['dtype']} [{', '.join(map(str, like['shape']))}]", meanings[name])
        for name, like in card["outputs"].items()
    ]
    return "## Outputs\n\n" + _table(("name", "type", "meaning"), rows)


def _run(card: Card, name: str, more: ForCard) -> str:
    """Return the section of a format."""
    title, needs, code = _HOW[name]
    needs, code = more.alone.get(name, (needs, code))
    inputs = card["input"]["name"]
    done = card["formats"][name]
    sentences = [done["note"]]
    if done["difference"] is not None:
        by = f"differs by {done['difference']:.1e} of the largest output" if done["difference"] else "is the same"
        sentences.append(f"Compared with the model itself on random {inputs}, it {by}.")
    sentences.append(needs.format(**card["versions"], inputs=inputs))
    return f"## {title}\n\n{' '.join(sentences)}\n\n{_code('python', code.format(ours=more.code, inputs=inputs))}"


_HOW = {  # title, what it needs, and code, where FOLDER, the inputs and PATHS are the reader's
    "stablehlo": (
        "StableHLO",
        "It needs `pip install jax=={jax} flatbuffers`, or a JAX of the half year after that one, and nothing else: "
        "`python run_stablehlo.py {inputs}.npy outputs.npz`, or",
        """\
import sys

sys.path.append(FOLDER)
from run_stablehlo import load

outputs = load(FOLDER)({inputs})""",
    ),
    "onnx": (
        "ONNX",
        "For example:",
        """\
import onnxruntime

session = onnxruntime.InferenceSession(FOLDER + "/model.onnx")
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(None, {{"{inputs}": {inputs}}})))""",
    ),
    "safetensors": (
        "safetensors",
        "With vit_jax_mixer, which makes the {inputs} too:",
        """\
{ours}""",
    ),
}


def _files(card: Card) -> str:
    rows = [(f"`{name}`", f"{file['bytes']:,}", f"`{file['sha256']}`") for name, file in card["files"].items()]
    return _table(("file", "bytes", "sha256"), rows)


def _table(head: Any, rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
