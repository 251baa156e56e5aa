"""Training in which each class is drawn equally often (``config.data.balance='classes'``)."""

import numpy as np

from vit_jax_mixer.data.sources import Source
from vit_jax_mixer.errors import UserError

MOST_READ = 200_000  # examples whose labels are read one by one


class Balance:
    """Which example comes at a place of the order, where each class has as many places as its largest has examples.

    A pass over all places is shuffled as an epoch is. The places of a class go around its examples, and from pass to
    pass on from where they ended: so all examples of a class come equally often, but for one time more or less.
    """

    def __init__(self, labels: np.ndarray) -> None:
        """Take the class of each example, int[N]; classes without one are left out."""
        self._members = np.argsort(labels, kind="stable")
        _, self._starts, self._counts = np.unique(labels[self._members], return_index=True, return_counts=True)
        self.each = int(self._counts.max())
        self.places = len(self._counts) * self.each

    def __call__(self, passes: np.ndarray | int, places: np.ndarray | int) -> np.ndarray:
        """Return the examples, i64[B], at places i64[B], each below `places`, of the passes i64[B]."""
        kind, place = np.divmod(places, self.each)
        return self._members[self._starts[kind] + (np.int64(passes) * self.each + place) % self._counts[kind]]

    def note(self) -> str:
        """Return a sentence on how much more often an example of the smallest class comes."""
        times = self.each / self._counts.min()
        classes = f"each of {len(self._counts):,} classes is drawn equally often"
        return f"{classes}: an example of the smallest {times:,.3g} times as often as one of the largest"


def labels_of(source: Source, field: str) -> np.ndarray:
    """Return the label of each example, int[N], by which a ``field`` of the config goes.

    Raises:
        UserError: they are not known, or only by reading very many examples.
    """
    source.check_labelled("the dataset", field)
    labels = getattr(source.examples, "labels", None)
    if labels is None:
        count = len(source.examples)
        if count > MOST_READ:
            raise UserError(
                f"{field} needs the labels of all {count:,} examples at once, and this dataset gives them one by one, "
                f"which takes too long above {MOST_READ:,}; use a folder:, manifest:, idx: or hf: dataset."
            )
        labels = np.array([int(source.examples[i]["label"]) for i in range(count)])
    bad = np.flatnonzero((labels < 0) | (labels >= len(source.class_names)))
    if len(bad):
        raise UserError(
            f"{field} needs labels, and {source.where(int(bad[0]))} has {labels[bad[0]]}; name another split."
        )
    return labels


def balanced(text: str, source: Source, labels: np.ndarray | None = None) -> Balance | None:
    """Return what ``config.data.balance`` asks for of the training examples, whose labels may be given; None for ''."""
    if text not in ("", "classes"):
        raise UserError(f"config.data.balance is {text!r}; it must be 'classes', or '' for each example once an epoch.")
    return Balance(labels_of(source, "config.data.balance") if labels is None else labels) if text else None
