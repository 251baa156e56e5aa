"""Say whether a run fits, and what it will cost.

  python -m vit_jax_mixer.plan --config=mixer_imagenet:B/16 --target=v5e:16x16
  python -m vit_jax_mixer.plan --config=digits --target=cpu

It takes the command line of training, with --target: a TPU slice (v5e:16x16, v4:2x2x1; needs the
extra `plan`), a number of GPUs (h100:8) or 'cpu' for this machine. Neither the accelerators nor the
data need be there; docs/planning.md says how it works.
"""

import os
import sys
from functools import partial

from absl import flags

from vit_jax_mixer import cli, command_line, config_file
from vit_jax_mixer.errors import UserError

_FLAGS = flags.FlagValues()
_FLAGS.append_flag_values(command_line.FLAGS)
_TARGET = flags.DEFINE_string("target", None, "What to plan for, as v5e:16x16, h100:8 or cpu.", flag_values=_FLAGS)
_UTILISATION = flags.DEFINE_float(
    "utilisation", 0.5, "Share of the roofline's speed that the run is to reach.", flag_values=_FLAGS
)
_SEARCH = flags.DEFINE_bool(
    "search", True, "Look for the largest batch that fits; compiles a few more times.", flag_values=_FLAGS
)
_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Of the data, where they are not here.", lower_bound=0, flag_values=_FLAGS
)
_SHAPE = flags.DEFINE_string(
    "image_shape", "", "Of the data before config.data's operations, as 28x28x1.", flag_values=_FLAGS
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON: bytes, seconds and FLOP of each chip.", flag_values=_FLAGS)


def main(given: command_line.Given) -> None:
    """Plan what the flags say."""
    if not 0 < _UTILISATION.value <= 1:
        raise UserError(f"--utilisation is {_UTILISATION.value}; it must be above 0, and at most 1.")
    # An accelerator that this machine has is left alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from vit_jax_mixer.plan import targets
    from vit_jax_mixer.plan.this_machine import this_machine

    jax.config.update("jax_platforms", "cpu")
    target = targets.parse(_TARGET.value or "", this_machine)
    if target.chip.kind == "gpu":
        jax.config.update("jax_num_cpu_devices", target.count)
    from vit_jax_mixer.config import Config
    from vit_jax_mixer.plan import report
    from vit_jax_mixer.plan.data_shape import without_data
    from vit_jax_mixer.plan.estimate import estimate

    whole = Config.of(given.config)
    run = without_data(whole, _CLASSES.value, _SHAPE.value)
    if run.epochs and run is not whole:
        raise UserError("the config counts epochs, and a plan does not read these data; set config.steps in steps.")
    tell = lambda line: print(line, file=sys.stderr, flush=True)
    plan = estimate(run, target, utilisation=_UTILISATION.value, search=_SEARCH.value, tell=tell)
    print(report.as_json(plan) if _JSON.value else report.text(plan, run, _UTILISATION.value))


if __name__ == "__main__":
    cli.run(main, _FLAGS, partial(command_line.parse_flags, values=_FLAGS), more_help=config_file.explain)
