"""Permutation importance of columns (Breiman 2001; Fisher et al. 2019, arXiv 1801.01489).

How much worse the answers become where a column's values are shuffled among the rows. N rows, F features, C columns.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vit_jax_mixer import charts
from vit_jax_mixer.data.tables.encoding import Encoding
from vit_jax_mixer.data.tables.target import Target
from vit_jax_mixer.errors import printable
from vit_jax_mixer.predictors.tables.figures import figures

REPEATS = 5  # shuffles of each column
MOST_ROWS = 2_000  # of an evaluation's, chosen once
MOST_COLUMNS = 1_000  # beyond, it would take longer than all else
_SHOWN = 30  # columns of the picture
_LESS_IS_BETTER = ("loss", "mae", "rmse", "calibration_error")


@dataclasses.dataclass(frozen=True, eq=False)
class Shuffled:
    """Rows, once for each column and repeat, with the values of that column shuffled among them.

    Attributes:
        rows: f32[N, F].
        labels: of them, [N].
        columns: the places of each column's features, which go together.
        orders: i64[REPEATS, N], from which row a value comes; the same for all columns.
    """

    rows: np.ndarray
    labels: np.ndarray
    columns: tuple[np.ndarray, ...]
    orders: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, labels: np.ndarray, encoding: Encoding) -> "Shuffled":
        """Choose the orders, which are the same each time."""
        counts = [len(column.features()) for column in encoding.columns]
        places = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
        rng = np.random.default_rng(1)
        return cls(rows, labels, tuple(places), np.stack([rng.permutation(len(rows)) for _ in range(REPEATS)]))

    def __len__(self) -> int:
        return len(self.columns) * self.orders.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        column, place = divmod(index, self.orders.size)
        repeat, number = divmod(place, len(self.rows))
        row, features = self.rows[number].copy(), self.columns[column]
        row[features] = self.rows[self.orders[repeat, number], features]
        return {"row": row, "label": self.labels[number]}


def chosen(count: int) -> np.ndarray:
    """Return which of ``count`` rows are shuffled, in their order."""
    return np.sort(np.random.default_rng(0).permutation(count)[:MOST_ROWS])


@dataclasses.dataclass(frozen=True, eq=False)
class Importance:
    """How much worse each figure became.

    Attributes:
        metric: the figure by which columns are sorted, and which the picture shows.
        names: of the columns, the most important first.
        worse: f64[C, REPEATS] by the name of the figure; less than 0 where it became better.
        rows: how many were shuffled.
    """

    metric: str
    names: Sequence[str]
    worse: dict[str, np.ndarray]
    rows: int

    @classmethod
    def of(
        cls,
        encoding: Encoding,
        target: Target,
        threshold: float,
        labels: np.ndarray,
        logits: np.ndarray,
        shuffled: np.ndarray,
    ) -> "Importance":
        """Compare.

        Args:
            encoding: has the columns.
            target: what the rows were asked for.
            threshold: least probability at which the positive class of two is told.
            labels: [N].
            logits: f32[N, K], of the rows as they are.
            shuffled: f32[C * REPEATS * N, K], of the rows of `Shuffled`.
        """
        before = figures(target, logits, labels, threshold)
        parts = shuffled.reshape(-1, *logits.shape)
        after = [figures(target, part, labels, threshold) for part in parts]
        worse = {
            name: np.array([one[name] - value if name in _LESS_IS_BETTER else value - one[name] for one in after])
            for name, value in before.items()
        }
        of_columns = {name: values.reshape(-1, REPEATS) for name, values in worse.items()}
        metric = next(name for name in ("auc" * (target.kind == "two"), "accuracy", "r2", "loss") if name in before)
        order = np.argsort(-of_columns[metric].mean(1), kind="stable")
        names = [encoding.columns[place].name for place in order]
        return cls(metric, names, {name: values[order] for name, values in of_columns.items()}, len(labels))

    def table(self) -> str:
        """Return it as CSV: the mean and deviation over the repeats, of each figure."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["column", *(f"{name}{more}" for name in self.worse for more in ("", "_deviation"))])
        for place, name in enumerate(self.names):
            told = [(values[place].mean(), values[place].std(ddof=1)) for values in self.worse.values()]
            writer.writerow([printable(name), *(f"{number:.6g}" for pair in told for number in pair)])
        return text.getvalue()

    def picture(self, word: str) -> Image.Image:
        """Return bars of the most important columns; ``word`` is the figure's for people."""
        values = self.worse[self.metric][:_SHOWN]
        rest = f", {_SHOWN} of {len(self.names):,}" if len(self.names) > _SHOWN else ""
        title = f"How much worse {word} becomes with a column shuffled{rest}"
        return charts.bars(title, self.names[:_SHOWN], values.mean(1), values.std(1, ddof=1))
