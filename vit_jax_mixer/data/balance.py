"""Training in which each class is drawn equally often (``config.data.balance='classes'``)."""

import numpy as np

from vit_jax_mixer.data.sources.base import Source, labels_of
from vit_jax_mixer.errors import UserError


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


def balanced(text: str, source: Source, labels: np.ndarray | None = None) -> Balance | None:
    """Return what ``config.data.balance`` asks for of the training examples, whose labels may be given; None for ''."""
    if text not in ("", "classes"):
        raise UserError(f"config.data.balance is {text!r}; it must be 'classes', or '' for each example once an epoch.")
    return Balance(labels_of(source, "config.data.balance") if labels is None else labels) if text else None
