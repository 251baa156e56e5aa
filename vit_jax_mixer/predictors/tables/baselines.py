"""Models of scikit-learn on the same rows, whose figures are told beside ours."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax_mixer import specs
from vit_jax_mixer.data.tables.encoding import Encoding
from vit_jax_mixer.data.tables.target import Target
from vit_jax_mixer.predictors.tables import figures

Set = tuple[np.ndarray, np.ndarray]  # rows f32[N, F], labels [N]
Made = Callable[[Encoding, bool], Any]  # from the encoding, and whether a number is told, to an estimator


def linear() -> Made:
    """Logistic regression, or ridge regression of a number, on categories one by one."""

    def make(encoding: Encoding, number: bool) -> Any:
        from sklearn.compose import make_column_transformer
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        scaled: Any = StandardScaler()  # its type says strings alone
        coded = [place for place, (_, codes) in enumerate(encoding.features) if codes]
        prepared = make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), coded), remainder=scaled, sparse_threshold=0
        )
        return make_pipeline(prepared, Ridge() if number else LogisticRegression(max_iter=5_000))

    return make


def boosting() -> Made:
    """Gradient boosting of trees by histograms, with scikit-learn's own settings."""

    def make(encoding: Encoding, number: bool) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        kind = HistGradientBoostingRegressor if number else HistGradientBoostingClassifier
        coded: Any = [bool(codes) for _, codes in encoding.features]  # its type says strings alone
        return kind(categorical_features=coded, random_state=0)

    return make


BASELINES: Mapping[str, Callable[[], Made]] = {"linear": linear, "boosting": boosting}


def parse(text: str, where: str) -> dict[str, Made]:
    """Return the models that a text names, with | between them, as 'linear|boosting'."""
    names = [name.strip() for name in text.split("|") if name.strip()]
    return {name: specs.build(BASELINES, name, where) for name in names}


def evaluate(
    chosen: Mapping[str, Made],
    encoding: Encoding,
    target: Target,
    train: Set,
    sets: Mapping[str, Set],
    first: str,
    criterion: str,
) -> dict[str, float]:
    """Return SPLIT/FIGURE_NAME of each model, fitted to the training rows; thresholds are chosen on the first split."""
    found: dict[str, float] = {}
    for name, make in chosen.items():
        model = make(encoding, target.kind == "number")
        model.fit(*train)
        threshold = 0.5
        for split, (rows, labels) in sets.items():
            logits = _logits(model, target, rows)
            if target.kind == "two" and split == first and criterion != "half":
                threshold = figures.best_threshold(figures.probabilities(target, logits), labels, criterion)
            of_split = figures.figures(target, logits, labels, threshold)
            told = {"mae", "r2"} if target.kind == "number" else {"accuracy", "f1", "auc"}
            found |= {f"{split}/{figure}_{name}": value for figure, value in of_split.items() if figure in told}
    return found


def _logits(model: Any, target: Target, rows: np.ndarray) -> np.ndarray:
    """Return f64[N, K], as ours are."""
    if target.kind == "number":
        return np.asarray(model.predict(rows))[:, None]
    p = np.zeros((len(rows), len(target.class_names)))
    p[:, model.classes_] = model.predict_proba(rows)
    logs = np.log(np.maximum(p, 1e-12))
    return logs[:, 1:] - logs[:, :1] if target.kind == "two" else logs
