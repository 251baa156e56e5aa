"""What an evaluation of translations found, what is printed of it, and its files."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vit_jax_mixer import files
from vit_jax_mixer.predictors import base

_LINES = {"\t": " ", "\n": " ", "\r": " "}


@dataclasses.dataclass(frozen=True)
class Evaluated(base.Evaluated):
    """What an evaluation found.

    Attributes:
        figures: those of `figures.figures`.
        signatures: how they were counted, by name.
        rows: (source, reference, translation) of each pair.
        per_second: sentences, reading and all, but for the compilation.
        skipped: a sentence for each bad pair.
    """

    figures: dict[str, float]
    signatures: dict[str, str]
    rows: Sequence[tuple[str, str, str]]
    per_second: float
    skipped: Sequence[str]

    def lines(self) -> list[str]:
        """Return what is printed."""
        return [
            f"  sentences    {len(self.rows):,}",
            f"  BLEU         {self.figures['bleu']:.2f}  {self.signatures['bleu']}",
            f"  chrF         {self.figures['chrf']:.2f}  {self.signatures['chrf']}",
            f"  exact match  {100 * self.figures['exact_match']:.2f} %",
            f"  speed        {self.per_second:,.1f} sentences/s",
        ]

    def write(self, out: Path, given: Mapping[str, str]) -> list[str]:
        """Write ``metrics.json`` and ``translations.tsv``: source, reference, translation."""
        told = {
            **given,
            "sentences": len(self.rows),
            **self.figures,
            "signatures": self.signatures,
            "skipped": list(self.skipped),
        }
        files.write_atomically(out / "metrics.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")
        table = str.maketrans(_LINES)
        lines = ["\t".join(cell.translate(table) for cell in row) for row in self.rows]
        files.write_atomically(out / "translations.tsv", "".join(f"{line}\n" for line in lines))
        return ["metrics.json", "translations.tsv"]
