"""Run many variants of a config, and make one table.

  python -m vit_jax_mixer.sweep sweep.toml
  python -m vit_jax_mixer.sweep sweep.toml --at_once=2

FILE is TOML: a config, seeds, and fields to vary, by lists or by a search (docs/sweeps.md). Each run is the ordinary
command `python -m vit_jax_mixer.main` in its own folder below --out, which is runs/NAME of FILE unless it is named:

table.md, table.csv       for each variant the mean and deviation over its seeds
runs.csv                  each run: its fields, whether it is complete, why it failed, its metrics
VARIANT/seed_N            its workdir; output.txt is what it printed

The same command goes on where a sweep was stopped or killed: complete runs stay, those begun resume, and those
that failed are tried again.
"""

from pathlib import Path

from absl import flags

from vit_jax_mixer import cli
from vit_jax_mixer.errors import UserError, printable

_FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string("out", None, "The folder that takes the runs; runs/NAME if not given.", flag_values=_FLAGS)
_AT_ONCE = flags.DEFINE_integer(
    "at_once", 1, "Runs at the same time; they share this machine.", lower_bound=1, upper_bound=1024, flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Run what the file says."""
    if len(argv) != 2:
        raise UserError("name one file, as in: python -m vit_jax_mixer.sweep sweep.toml")
    # Imported here, so that a typo in a flag is answered before JAX is loaded.
    import jax

    from vit_jax_mixer.sweep import plan, running, table
    from vit_jax_mixer.sweep.rungs import Rungs

    jax.config.update("jax_platforms", "cpu")  # an accelerator is left to the runs
    sweep = plan.read(argv[1])
    out = Path(_OUT.value).expanduser() if _OUT.value else Path("runs") / Path(argv[1]).stem
    markdown = ""
    try:
        out.mkdir(parents=True, exist_ok=True)
        rungs = Rungs(out, sweep.halving, sweep.best) if sweep.halving else None
        results = {run.place: running.result(run, out, rungs) for run in sweep.runs}
        waiting = [one.run for one in results.values() if one.status not in ("complete", "ended")]
        done = sum(one.status == "complete" for one in results.values())
        print(printable(f"{len(results)} runs in {out}, {done} of them complete"), flush=True)
        markdown = table.write(out, sweep, list(results.values()))
        for found in running.start_all(waiting, out, _AT_ONCE.value, rungs):
            results[found.run.place] = found
            markdown = table.write(out, sweep, list(results.values()))
            left = sum(one.status == "begun" for one in results.values())
            print(
                printable(f"{found.run.place}: {found.status}  {found.reason}".rstrip() + f"  ({left} left)"),
                flush=True,
            )
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}); choose another --out.") from error
    print(markdown, end="")
    if sweep.best and (said := table.best_of(sweep, list(results.values()))):
        print(printable(said))
    if any(one.status == "begun" for one in results.values()):
        raise SystemExit("stopped; the same command goes on.")
    if failed := sum(one.status == "failed" for one in results.values()):
        raise SystemExit(f"error: {failed} of {len(results)} runs failed; {printable(out / table.TABLE)} says why.")


if __name__ == "__main__":
    cli.run(main, _FLAGS)
