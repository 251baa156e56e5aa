"""UNSW-NB15: the Mixer, the tabular document's own system, trees and MLPs on the same rows; one table.

python -m benchmarks.unsw --rows=unsw_nb15 [--out=runs/unsw --seeds=0,1,2,3,4 --only=mixer,boosting]

--rows is a folder of train.csv and test.csv: 20,000 and 4,000 flows, 42 features and a label. All models learn from
all rows of train.csv and are told by those of test.csv, which choose nothing. What must be chosen is so by rows of
train.csv that a model has not learnt from. Those of test.csv are unlike them in kind: a random part of train.csv is
told far better than they are. So the parts that are held out are of whole clusters: rows are put into 40 by k-means,
and these into five parts; five models learn from four of them each, and tell the fifth. What they tell of all rows
is what --search prints, and chooses the threshold.

Each training is a file in --out; what is there is not made again, so that the same command goes on where it was
stopped. It prints table.md, a Markdown table of mean and deviation over the seeds.

    python -m benchmarks.unsw --rows=unsw_nb15 --search=mixer,mixer_periodic   # what is chosen from
    python -m benchmarks.unsw --rows=unsw_nb15 --time=original                 # seconds of an epoch
"""

import dataclasses
import functools
import importlib
import io
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks.parts import of_any_seed
from configs import tabular
from vit_jax_mixer import cli, files, plugins
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.pipeline import IS_EXAMPLE
from vit_jax_mixer.data.sources import open_source
from vit_jax_mixer.data.sources.table import in_order, table_of
from vit_jax_mixer.data.tables import encoding as encodings
from vit_jax_mixer.errors import UserError
from vit_jax_mixer.predictors.tables import figures
from vit_jax_mixer.run import parallel
from vit_jax_mixer.run import step as step_lib
from vit_jax_mixer.run.assemble import Parts, assemble

_ROWS = flags.DEFINE_string("rows", None, "Folder of train.csv and test.csv.", required=True)
_OUT = flags.DEFINE_string("out", "runs/unsw", "The folder that takes the results.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds of each model.")
_ONLY = flags.DEFINE_list("only", [], "Names of models; all if not given.")
_SEARCH = flags.DEFINE_list("search", [], "Compare these on parts of train.csv alone, seed 0, and do nothing else.")
_PARTS = flags.DEFINE_list("parts", ["0", "1", "2", "3", "4"], "Those that --search looks at.")
_TIME = flags.DEFINE_string("time", "", "Time steps of this one, and do nothing else.")
_EPOCHS = flags.DEFINE_integer("original_epochs", 1, "Of the document's system; it has 100.", lower_bound=1)

FOLDS, CLUSTERS = 5, 40
_MIXER = {
    "epochs": 8,
    "batch_size": 256,
    "model.num_blocks": 2,
    "model.hidden_dim": 64,
    "model.column_dim": 16,
    "model.numbers": "periodic(frequencies=16, sigma=0.3)",
    "model.dropout_rate": 0.0,
    "model.stochastic_depth_rate": 0.1,
    "data.scaling": "quantile",
    "optim.optimizer": "adamw(weight_decay=0.05)",
    "optim.learning_rate": 2e-3,
    "ema_decay": 0.99,
}
_OF_BLOCKS = ("model.num_blocks", "model.hidden_dim", "model.stochastic_depth_rate")
_MLP = {name: value for name, value in _MIXER.items() if name not in _OF_BLOCKS}
_MLP |= {"model": ("column_dim", "numbers", "dropout_rate"), "model.dropout_rate": 0.1}

# What each changes in configs/tabular.py; 'epochs' is its length, 'model' the fields that another model keeps of it.
NETWORKS: dict[str, dict[str, Any]] = {
    "original": {"config": ":original"},
    "original_quantile": {"config": ":original", "data.scaling": "quantile"},
    "mixer": _MIXER,
    "mlp": _MLP | {"model.name": "benchmarks.mlps:Mlp", "model.width": 256},
    "tabm": _MLP | {"model.name": "benchmarks.mlps:TabM", "model.width": 128, "model.members": 8},
    # Others that the Mixer was chosen from
    "mixer_linear": _MIXER | {"model.numbers": "linear"},
    "mixer_piecewise": _MIXER | {"data.scaling": "piecewise(bins=16)", "model.numbers": "piecewise(bins=16)"},
    "mixer_slow": _MIXER | {"model.numbers": "periodic(frequencies=16, sigma=0.1)"},
    "mixer_dropout": _MIXER | {"model.dropout_rate": 0.2},
    "mixer_decay": _MIXER | {"optim.optimizer": "adamw(weight_decay=0.5)"},
    "mixer_short": _MIXER | {"epochs": 4},
    "mixer_smooth": _MIXER | {"task.label_smoothing": 0.05},
    "mixer_lambda": _MIXER | {"model.token_mixer": "lambda_layer"},
    "mixer_asam": _MIXER | {"sharpness": "sam(rho=0.5, adaptive=True)"},
}
SHOWN = ("original", "original_quantile", "mixer", "mlp", "tabm")
TOGETHER = "mixer_together"  # the mean probability of the Mixer's seeds
TREES = ("boosting", "lightgbm")


def main(argv: list[str]) -> None:
    """Search, time, or make what is lacking, and print the table."""
    del argv
    for name in (*_ONLY.value, *_SEARCH.value, *filter(None, [_TIME.value])):
        if name not in (*NETWORKS, TOGETHER, *TREES):
            raise UserError(
                f"{name!r} is no model of this table; choose from {', '.join((*NETWORKS, TOGETHER, *TREES))}."
            )
    if _TIME.value:
        return print(epoch_time(_TIME.value))
    if _SEARCH.value:
        names, seeds = _SEARCH.value, [0]
        head, told = SEARCHED, searched
    else:
        names, seeds = _ONLY.value or (*SHOWN, TOGETHER, *TREES), [int(seed) for seed in _SEEDS.value]
        head, told = FIGURES, shown
    lines = [f"| model | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    print("\n".join(lines), flush=True)
    for name in names:
        lines.append(f"| {name} | {' | '.join(told(name, seeds))} |")
        print(lines[-1], flush=True)
    files.write_atomically(Path(_OUT.value) / ("search.md" if _SEARCH.value else "table.md"), "\n".join(lines) + "\n")


# --- Networks ---


def config_of(name: str, folder: Path, held_out: str) -> Config:
    """Return the config of a network that learns from train.csv of a folder and tells another of its files."""
    fields = dict(NETWORKS[name])
    config = tabular.get_config(fields.pop("config", "").removeprefix(":"))
    original = name.startswith("original")
    kept, epochs = fields.pop("model", None), fields.pop("epochs", _EPOCHS.value)
    if kept:
        config.model = {field: config.model[field] for field in kept}
    for field, value in fields.items():
        section, _, last = field.rpartition(".")
        (config[section] if section else config)[last] = value
    config.data.source = f"table:{folder}"
    config.data.update(train="train", eval=held_out, test="", drop="id")
    config.task.update(threshold="half", beside="")
    config.steps = epochs * (len(_lines(folder / "train.csv")) - 1) // config.batch_size
    # The document's decay takes 15 of its 100 epochs, its warm-up two.
    config.optim.warmup_steps = config.steps // (50 if original else 10)
    if original:
        config.optim.schedule = f"cosine(decay_steps={max(config.steps * 15 // 100, 1)}, floor=1e-6)"
    config.eval_batch_size = 1_000
    plugins.allow_all_in(config.to_dict())
    return Config.of(config)


def learnt(name: str, folder: Path, held_out: str, seeds: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
    """Yield of each seed's training what it tells of the rows held out, their labels, and the seconds."""
    from scipy.special import expit

    parts, fresh, step = _ready(name, folder, held_out)
    tell = jax.jit(parts.task.eval_step)
    for seed in seeds:
        begun = time.monotonic()
        number, state = np.uint32(seed), fresh(np.uint32(seed))
        for batch in _batches(parts, seed):
            state, _ = step(number, state, batch)
        state = dataclasses.replace(state, params=state.ema or state.params)
        found = [
            (tell(state, batch), batch)
            for batch in parts.loader.eval_batches(parts.task.eval_data[held_out], batch_size=parts.run.eval_batch_size)
        ]
        there = np.concatenate([batch[IS_EXAMPLE] for _, batch in found])
        logits = np.concatenate([told["logits"] for told, _ in found])[there, 0].astype(np.float64)
        labels = np.concatenate([batch["label"] for _, batch in found])[there]
        yield {"p": expit(logits), "labels": labels, "seconds": np.asarray(time.monotonic() - begun)}


def _ready(name: str, folder: Path, held_out: str) -> tuple[Parts, Any, Any]:
    """Return the parts of a training, and compiled for any seed, its first state and its step."""
    parts = assemble(config_of(name, folder, held_out))
    of = of_any_seed(parts)

    def fresh(seed: Any) -> Any:
        one = of(seed)
        return one.new_state(*one.init())

    step = lambda seed, state, batch: of(seed).train_step(step_lib.Across(), state, batch)
    return parts, jax.jit(fresh), jax.jit(step, donate_argnums=1, compiler_options=parallel.COMPILER_OPTIONS)


def _batches(parts: Parts, seed: int) -> Iterator[Any]:
    run = parts.run
    batches = parts.loader.train_batches(parts.task.train_data, seed=seed, batch_size=run.batch_size, start=0)
    return itertools.islice(batches, run.steps)


def epoch_time(name: str) -> str:
    """Return how long an epoch is, by the fastest and the median of 40 steps."""
    parts, fresh, step = _ready(name, Path(_ROWS.value), "test")
    number, state, seconds = np.uint32(0), fresh(np.uint32(0)), []
    for batch in itertools.islice(_batches(parts, 0), 43):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(step(number, state, batch))
        seconds.append(time.perf_counter() - begun)
    steps = len(parts.task.train_data) / parts.run.batch_size
    fastest, median = (steps * of(seconds[3:]) for of in (min, np.median))
    return (
        f"{name}: an epoch of {steps:.0f} steps takes {fastest:.1f} s by the fastest step, {median:.1f} by the median"
    )


# --- Trees ---


def grown(name: str, folder: Path, held_out: str, seeds: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the same of trees with their own default settings, on numbers as they are and codes of categories."""
    if name == "lightgbm":
        try:
            LGBMClassifier = importlib.import_module("lightgbm").LGBMClassifier  # noqa: N806
        except ImportError as error:
            raise UserError("lightgbm is not installed; pip install lightgbm, or leave it out by --only.") from error
        make = lambda seed: LGBMClassifier(random_state=seed, n_jobs=1, verbose=-1)
    else:
        from sklearn.ensemble import HistGradientBoostingClassifier

        make = lambda seed: HistGradientBoostingClassifier(random_state=seed)
    tables = {split: table_of(open_source(f"table:{folder}", split), split) for split in ("train", held_out)}
    (rows, labels), (others, true) = (plain(table, tables["train"]) for table in tables.values())
    for seed in seeds:
        begun = time.monotonic()
        p = np.asarray(make(seed).fit(rows, labels).predict_proba(others))[:, 1]
        yield {"p": p, "labels": true, "seconds": np.asarray(time.monotonic() - begun)}


def plain(table: Any, train: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return f64[N, 42] and the labels; a category is its place among those of training, in the alphabet."""
    columns = []
    for name in table.names:
        if name in ("id", "label"):
            continue
        values, odd = table.numbers(name)
        if len(odd):
            (codes, words), known = table.words(name), sorted(train.words(name)[1])
            of_word = np.asarray([*(known.index(word) if word in known else -1 for word in words), -1])
            values = of_word[codes].astype(np.float64)
        columns.append(values)
    return np.stack(columns, 1), table.numbers("label")[0].astype(np.int32)


# --- What is held out ---


@functools.cache
def folds() -> list[Path]:
    """Return the folders of train.csv and held.csv of each fold; made at the first call, of the training rows alone."""
    from sklearn.cluster import KMeans
    from sklearn.model_selection import GroupKFold

    places = [Path(_OUT.value) / "folds" / f"{i}" for i in range(FOLDS)]
    if not all((place / "held.csv").exists() for place in places):
        table = table_of(in_order([f"{_ROWS.value}/train.csv"]), "train.csv")
        encoding, _ = encodings.fit(table, ("id", "label"), "quantile")
        rows = np.clip(encoding(table)[0], -3, 3)
        times: Any = 3  # scikit-learn's stubs know the word 'auto' alone
        clusters = KMeans(CLUSTERS, n_init=times, random_state=0).fit_predict(rows)
        head, *lines = _lines(Path(_ROWS.value) / "train.csv")
        for place, parts in zip(
            places, GroupKFold(FOLDS, shuffle=True, random_state=0).split(rows, groups=clusters), strict=True
        ):
            place.mkdir(parents=True, exist_ok=True)
            for name, part in zip(("train", "held"), parts, strict=True):
                files.write_atomically(place / f"{name}.csv", "".join([head, *(lines[i] for i in part)]))
    return places


@functools.cache
def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


# --- Tables ---

FIGURES = ("accuracy", "F1", "AUC", "accuracy, threshold chosen", "F1, threshold chosen", "threshold", "s a training")
SEARCHED = ("accuracy", "F1", "AUC", "loss", "threshold")


def runs(name: str, folder: Path, held_out: str, place: str, seeds: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Return what came of trainings, and make those that are not there."""
    paths = {seed: Path(_OUT.value) / name / f"{place}_{seed}.npz" for seed in seeds}
    lacking = [seed for seed, path in paths.items() if not path.exists()]
    how = grown if name in TREES else learnt
    for seed, found in zip(lacking, how(name, folder, held_out, lacking) if lacking else (), strict=True):
        file = io.BytesIO()
        arrays: Any = found  # else NumPy's stubs take one for the argument allow_pickle
        np.savez(file, **arrays)
        paths[seed].parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(paths[seed], file.getvalue())
    return [dict(np.load(path)) for path in paths.values()]


def held(name: str, parts: Sequence[int] = range(FOLDS)) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of all training rows, told by models that did not learn their clusters; and labels."""
    found = [runs(name, folds()[i], "held", f"fold{i}", [0])[0] for i in parts]
    return np.concatenate([one["p"] for one in found]), np.concatenate([one["labels"] for one in found])


def shown(name: str, seeds: Sequence[int]) -> list[str]:
    """Return the cells of a model's row of the table."""
    of = "mixer" if name == TOGETHER else name
    chosen = np.nan if of.startswith("original") else figures.best_threshold(*held(of), "accuracy")
    found = runs(of, Path(_ROWS.value), "test", "test", seeds)
    mean = {"p": np.mean([one["p"] for one in found], 0), "labels": found[0]["labels"]}
    if name == TOGETHER:
        found = [mean | {"seconds": np.sum([one["seconds"] for one in found])}]
    rows = [[*_told(one, 0.5), _auc(one), *_told(one, chosen), chosen, float(one["seconds"])] for one in found]
    return [cell(values) for values in np.transpose(rows)]


def searched(name: str, seeds: Sequence[int]) -> list[str]:
    """Return the cells of what is compared on training rows."""
    del seeds
    p, labels = held(name, [int(part) for part in _PARTS.value])
    one = {"p": p, "labels": labels}
    loss = -np.mean(np.log(np.maximum(np.where(labels == 1, p, 1 - p), 1e-12)))
    values = [*_told(one, 0.5), _auc(one), loss, figures.best_threshold(p, labels, "accuracy")]
    return [cell(np.asarray([value])) for value in values]


def _told(one: dict[str, np.ndarray], threshold: float) -> tuple[float, float]:
    """Return accuracy and F1; nothing where no threshold was chosen."""
    if np.isnan(threshold):
        return np.nan, np.nan
    told, true = one["p"] >= threshold, one["labels"] == 1
    return float((told == true).mean()), float(2 * (told & true).sum() / (told.sum() + true.sum()))


def _auc(one: dict[str, np.ndarray]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(one["labels"], one["p"]))


def cell(values: np.ndarray) -> str:
    """Return the mean, and the deviation where there are several."""
    if np.isnan(values).any():
        return ""
    digits = 4 if values.max() <= 1 else 0
    return f"{values.mean():.{digits}f}" + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    cli.run(main)
