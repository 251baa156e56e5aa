"""A sequence-to-sequence ResMLP beside a Transformer of its size: the same pairs, vocabulary, steps and schedule.

    python -m benchmarks.translation --pairs=en_es [--out=runs/translation --seeds=0,1 --steps=3000]

--pairs is a folder with train, validation and test, as .tsv or .tsv.gz. Runs that are complete in --out are not made
again: the same command goes on where it was stopped, and with more --steps where it ended. It prints of each run BLEU
and chrF of test, by the likeliest token and by four beams, and BLEU of validation as it rose; then means and
deviations, the time of a training step (the two in turn, on the same batches) and of a sentence. --out has them in
report.md, with ten translations.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks.parts import prepared
from configs import translate
from vit_jax_mixer import files
from vit_jax_mixer.config import Config
from vit_jax_mixer.data.sources import Source, open_source
from vit_jax_mixer.data.text import encoded
from vit_jax_mixer.evaluation import evaluate
from vit_jax_mixer.predictors.translation.figures import signatures
from vit_jax_mixer.run.assemble import assemble
from vit_jax_mixer.train import train_and_evaluate
from vit_jax_mixer.trained import open_model

_PAIRS = flags.DEFINE_string("pairs", None, "Folder of train, validation and test.", required=True)
_OUT = flags.DEFINE_string("out", "runs/translation", "Takes the workdirs of the runs and the report.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Of each of the two.")
_STEPS = flags.DEFINE_integer("steps", 3_000, "Updates of a run, of about 2,048 pieces a side.", lower_bound=4)
_TIMED = flags.DEFINE_integer("timed", 40, "Training steps that are timed.", lower_bound=1)

KINDS = {"linear": "linear across positions", "attention": "self-attention"}
BEAMS = (1, 4)
_ROWS = 64  # sentences that are translated at a time


def main(argv: list[str]) -> None:
    """Make the runs, and print what came out."""
    del argv
    logging.set_verbosity(logging.WARNING)  # what Orbax tells of each checkpoint
    found: dict[str, list[dict[int, dict[str, float]]]] = {kind: [] for kind in KINDS}
    told: dict[str, list[str]] = {}
    test = open_source(f"text:{_PAIRS.value}", "test")
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    for seed, kind in itertools.product(map(int, _SEEDS.value), KINDS):
        workdir = f"{_OUT.value}/{kind}_{seed}"
        state = train_and_evaluate(config_of(kind, seed), workdir, change_config=True)  # of --steps
        if int(state.step) < _STEPS.value:
            return  # by SIGTERM, as was told
        trained, result = open_model(workdir), {}
        for beams in BEAMS:
            searched = dataclasses.replace(trained, about=trained.about.with_ops(f"beam({beams})"))
            found_now = evaluate(searched, test, "test", batch_size=_ROWS)
            result[beams] = {**found_now.figures, "rate": found_now.per_second}
            if seed == int(_SEEDS.value[0]):
                told[kind] = [translation for *_, translation in found_now.rows]
        found[kind].append(result)
        tell(f"{kind}, seed {seed}: {_of(result)}; validation BLEU {_curve(workdir)}; {trained.origin}")
    tell("\n" + "\n".join(table(found)))
    tell("\n" + step_times())
    tell("\n" + "\n".join(f"{name}: {value}" for name, value in signatures().items()))
    tell("\n" + "\n\n".join(_ten(test, told)))
    files.write_atomically(Path(_OUT.value) / "report.md", "\n".join(lines) + "\n")


def config_of(kind: str, seed: int) -> Any:
    """Return configs/translate.py for the pairs, with a figure of validation each 500 steps."""
    made = translate.get_config(_PAIRS.value)
    made.seed, made.steps, made.model.self_mixing = seed, _STEPS.value, kind
    made.optim.warmup_steps = 400  # whatever --steps is, so that a longer run goes on where a shorter one ended
    made.log_every = made.eval_every = made.checkpoint.every = min(500, _STEPS.value // 4)
    return made


def step_times() -> str:
    """Return the median time of a training step of each, the two in turn on the batches that a run begins with."""
    run = Config.of(config_of("linear", 0))
    parts = assemble(run)
    loaded = parts.loader.train_batches(parts.task.train_data, seed=0, batch_size=run.batch_size, start=0)
    batches = [parts.devices.put_batch(batch) for batch in itertools.islice(loaded, _TIMED.value)]
    ready = {kind: prepared(Config.of(config_of(kind, 0)))[1:3] for kind in KINDS}
    states = {kind: state for kind, (_, state) in ready.items()}
    seconds: dict[str, list[float]] = {}
    for timed in (False, True):  # the first time they are compiled for each length
        seconds = {kind: [] for kind in KINDS}
        for batch, kind in itertools.product(batches, KINDS):
            begun = time.perf_counter()
            states[kind], _ = jax.block_until_ready(ready[kind][0](states[kind], batch))
            seconds[kind].append(time.perf_counter() - begun)
        del timed
    ratio = np.median(np.divide(seconds["linear"], seconds["attention"]))
    told = ", ".join(f"{kind} {1000 * np.median(values):.0f} ms" for kind, values in seconds.items())
    return f"a training step, median of {len(batches)}: {told}; linear takes {ratio:.2f} of attention's"


def table(found: dict[str, list[dict[int, dict[str, float]]]]) -> list[str]:
    """Return a Markdown table of means and deviations (n - 1) over the seeds."""
    head = [f"{name}, beam {beams}" for beams in BEAMS for name in ("BLEU", "chrF", "sentences/s")]
    lines = [f"| mixing | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for kind, results in found.items():
        cells = []
        for beams, name in itertools.product(BEAMS, ("bleu", "chrf", "rate")):
            values = [result[beams][name] for result in results]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 and name != "rate" else ""
            cells.append(f"{np.mean(values):.2f}{spread}")
        lines.append(f"| {KINDS[kind]} | {' | '.join(cells)} |")
    return lines


def _of(result: dict[int, dict[str, float]]) -> str:
    return "; ".join(
        f"beam {beams}: BLEU {one['bleu']:.2f}, chrF {one['chrf']:.2f}, {one['rate']:.1f} sentences/s"
        for beams, one in result.items()
    )


def _curve(workdir: str) -> str:
    """Return BLEU of the validation split at each evaluation of a run."""
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return ", ".join(
        f"{line['validation/bleu']:.2f} (step {line['step']})" for line in lines if "validation/bleu" in line
    )


def _ten(test: Source, told: dict[str, list[str]]) -> Iterator[str]:
    """Yield ten pairs, evenly from all, with the translations of four beams."""
    for index in np.linspace(0, len(test.examples) - 1, 10).astype(int).tolist():
        source, target = encoded.pair_of(test.examples[index])
        yield "\n".join([f"- {source}", f"  - given: {target}", *(f"  - {kind}: {told[kind][index]}" for kind in told)])


if __name__ == "__main__":
    app.run(main)
