"""The train loop: the only one. What differs between ways of learning is a task."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vit_jax_mixer import config as config_lib
from vit_jax_mixer import plugins, specs
from vit_jax_mixer.checkpoints import best
from vit_jax_mixer.data import record
from vit_jax_mixer.data.pipeline import Batch, indices_of
from vit_jax_mixer.data.skipped import Skipped
from vit_jax_mixer.errors import UserError, suggest
from vit_jax_mixer.run import hardware, parallel, processes, resident, step
from vit_jax_mixer.run import workdir as workdirs
from vit_jax_mixer.run.assemble import Parts, assemble
from vit_jax_mixer.run.checkpoint import Checkpoints
from vit_jax_mixer.run.early_stopping import EarlyStopping
from vit_jax_mixer.run.evaluation import Evaluator, ahead
from vit_jax_mixer.run.gradient_norms import Vanishing
from vit_jax_mixer.run.plateau import Plateau
from vit_jax_mixer.run.preemption import Interruption, Stopped
from vit_jax_mixer.run.reports import Reports
from vit_jax_mixer.run.trace import Trace
from vit_jax_mixer.tasks import Task, TrainState


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    change_config: bool = False,
    change_data: bool = False,
    start_anew: bool = False,
    command: str = "",
) -> TrainState:
    """Train from the workdir's newest checkpoint, or from the start, to ``config.steps``.

    A run is a pure function of (config, seed, step): stopped at any moment and called again, it
    ends bit for bit as if it had not been stopped.

    Args:
        config: as ``configs/*.py`` make it.
        workdir: takes checkpoints, metrics and the config.
        change_config: go on though the config differs from the one in the workdir.
        change_data: go on though the data differ from those that the workdir's run was begun with.
        start_anew: begin from the start where the workdir's run has lost its checkpoints.
        command: that goes on with the run; is told where it was stopped.

    Returns:
        The last state, on the devices.

    Raises:
        UserError: what the user can mend, in one sentence; what was trained until then is saved.
    """
    # --- From the config to the parts ---
    plugins.allow_all_in(config.to_dict())
    run = config_lib.Config.of(config)
    processes.check_same(repr(config), "the config")
    parallel.check_batch_size(run.eval_batch_size, "config.eval_batch_size")
    parts = assemble(run)
    run = parts.run  # with lengths in steps
    parts.check_published()
    task, devices = parts.task, parts.devices
    about = task.about()
    data = record.of(task.train_data, task.eval_data, task.digests)
    processes.check_same(json.dumps(data), "the record of the data", record.differences)
    train_step = _traceable(parts) if run.debug_nans else devices.train_step(parts.train_step)

    with (
        jax.debug_nans(run.debug_nans),
        workdirs.opened(workdir) as folder,
        closing(specs.call(Checkpoints, run.checkpoint, "config.checkpoint", workdir=folder.path)) as checkpoints,
    ):
        stopping = specs.call(EarlyStopping, run.early_stopping, "config.early_stopping")
        plateau = specs.call(Plateau, run.plateau, "config.plateau")
        _check_metric(checkpoints.best, "config.checkpoint.best", task)
        for one in (stopping, plateau):
            _check_metric(best.metric(one.metric), f"config.{one.section}.metric", task)

        # --- The state: fresh, pretrained or resumed ---
        start = checkpoints.latest() or 0
        processes.check_same(f"{start}", "the newest checkpoint")
        folder.check_begin(start, run.steps, start_anew=start_anew)
        same = not start or folder.is_of(config, data, change_config=change_config, change_data=change_data)
        state = parts.restored_state(checkpoints, start) if start else parts.fresh_state()
        if same or start < run.steps:  # what a finished run says of its model stays true
            folder.record(start, config, data, about, task.published)

        # --- Steps ---
        trace = Trace(run.profile, folder.path, start, run.steps)
        summary = _summary(run, task, start, folder.path)
        use = about.command(folder.path) if about else ""
        reports = _reports(run, task, start, folder.path, summary, {"Go on": command, "Use the model": use})
        with closing(reports), closing(trace), Interruption(start).heeded() as interruption:
            for line in (checkpoints.set_aside, summary, *_remarks(task), trace.notice):
                reports.line(line)
            skipped = Skipped(folder.path, jax.process_index(), reports.line)
            evaluate = Evaluator(run, task, devices, parts.loader, skipped, interruption.check)
            logged = reports.has_evaluation(start)
            known = logged and checkpoints.is_scored(start)
            if processes.of_first(start > 0 and run.evaluates_after(start) and not known):
                try:
                    if scores := evaluate(start, state):
                        checkpoints.score(start, scores, whole=evaluate.is_whole(start))
                    if scores and not logged:
                        reports.evaluation(start, scores)
                        reports.pictures(start, evaluate.pictures(start, state))
                except Stopped as stopped:
                    reports.line(_stopped_line(f"{stopped}", start, run.steps, folder.path, command))
                    return state
            for one in (stopping, plateau):
                one.check(reports.evaluations, start, run.eval_every)
            state = plateau.applied(state, reports.evaluations, run.eval_every)
            ends = stopping.reason(reports.evaluations, run.eval_every)
            placing = resident.placing(task.train_data, devices)
            batches = parts.loader.train_batches(
                placing.data, seed=run.seed, batch_size=run.batch_size, start=start, on_skipped=skipped
            )
            if not start:
                batches = _with_first(batches, lambda first: reports.pictures(0, task.sheet(placing.whole(first))))
            ready = ahead(batches, placing.put)
            done = start
            try:
                for number in range(start + 1, (start if ends else run.steps) + 1):
                    trace.before(number)
                    with reports.waiting():
                        batch = next(ready)
                    state, metrics = train_step(state, batch)
                    done = number
                    reports.training(number, metrics)
                    reports.line(trace.after(number, metrics))

                    scores, stopped = {}, interruption.agreed(number)
                    if run.evaluates_after(number) and not stopped:
                        reports.catch_up()
                        try:
                            if scores := evaluate(number, state):
                                reports.evaluation(number, scores)
                                reports.pictures(number, evaluate.pictures(number, state))
                                reports.parameters(number, partial(devices.saved_form, state))
                                reports.line(task.remark(scores))
                                state = plateau.applied(state, reports.evaluations, run.eval_every)
                                reports.line(plateau.remark(reports.evaluations, number, run.eval_every))
                        except Stopped:
                            stopped = interruption.agreed(number)
                    ends = stopping.reason(reports.evaluations, run.eval_every) if scores else ""
                    last = bool(stopped or ends) or number == run.steps
                    if scores or last or number % checkpoints.every == 0 or checkpoints.failed():
                        reports.catch_up()  # so that a state that is not finite is never saved
                        how = dict(whole=evaluate.is_whole(number), last=last)
                        reports.line(checkpoints.save(number, devices.saved_form(state), scores, **how))
                        folder.check_there()
                    if stopped:
                        reports.line(_stopped_line(stopped, number, run.steps, folder.path, command))
                    if stopped or ends:
                        break
            except Exception as error:
                _save_before(error, checkpoints, done, lambda: devices.saved_form(state), reports)
                raise
            reports.line(skipped.summary())
            reports.line(ends)
            if ends or done >= run.steps:
                reports.pictures(done, task.conclusion())
                use = f"use the model: {use}" if use else ""
                told = "; ".join(filter(None, [checkpoints.conclusion(), use])) or folder.path
                reports.summary(done, f"done: {told}")
    return state


def _with_first(batches: Iterator[Batch], show: Callable[[Batch], None]) -> Iterator[Batch]:
    """Yield batches, the first after it is shown."""
    first = next(batches)
    show(first)
    yield first
    yield from batches


def _save_before(
    error: Exception, checkpoints: Checkpoints, done: int, state: Callable[[], TrainState], reports: Reports
) -> None:
    """Save what was trained before an error ends the run, whatever error it is."""
    if jax.process_count() > 1:  # they could save only together, and the others are a step ahead
        checkpoints.given_up = True
        return
    try:
        reports.catch_up()
        if not checkpoints.given_up and done > (checkpoints.latest() or 0):
            checkpoints.save(done, state(), {}, last=True)
    except Exception as second:  # it must not take the place of a defect's traceback
        if isinstance(error, UserError):
            raise
        error.add_note(f"What was trained until step {done} is not saved: {second}")


def _traceable(parts: Parts) -> Callable[..., Any]:
    """Compile a step so that JAX can repeat it operation by operation, to find the one that makes a NaN."""
    if parts.run.parallel.startswith("pmap"):
        raise UserError("config.debug_nans needs config.parallel='jit'; change one.")
    return jax.jit(partial(parts.train_step, step.Across()))


def _reports(
    run: config_lib.Config, task: Task, start: int, workdir: Path, about: str, commands: Mapping[str, str]
) -> Reports:
    """Open the run's metrics; a step that is not finite leaves a file that names its examples."""

    def name_examples(number: int) -> str:
        path = workdir / f"not_finite_step_{number}.json"
        data = task.train_data
        indices = indices_of(data, seed=run.seed, batch_size=run.batch_size, step=number - 1)
        examples = [{"index": index, "where": data.source.where(index)} for index in indices]
        try:
            if jax.process_index() == 0:
                path.write_text(json.dumps({"step": number, "examples": examples}, indent=1) + "\n")
        except OSError as error:
            return f" ({path}, for the names of its examples, cannot be written: {error.strerror})"
        return f" ({path} names its examples)"

    peak = hardware.peak_flop()
    return Reports(
        workdir,
        start,
        run.steps,
        run.log_every,
        run.batch_size,
        writers=run.writers,
        noun=task.noun,
        about=about,
        commands={what: line for what, line in commands.items() if line},
        # The backward pass has twice the work of the forward.
        least_seconds=3 * task.forward_flop() * run.batch_size / peak if peak else 0.0,
        skips=run.skips,
        on_not_finite=name_examples,
        remark=Vanishing(run.optim.get("warmup_steps", 0)),
    )


def _check_metric(metric: str, field: str, task: Task) -> None:
    """Raise a `UserError`, before anything is trained, if no evaluation can give that metric."""
    if metric and metric.rpartition("/")[0] not in task.eval_data:
        known = [f"{name}/..." for name in task.eval_data]
        raise UserError(f"{field}: {metric!r} is no metric of this run{suggest(metric, known)}")


def _remarks(task: Task) -> list[str]:
    """Return what the sources of a task's data have to tell, once each."""
    sources = [data.source for data in (task.train_data, *task.eval_data.values())]
    return list(dict.fromkeys(line for source in sources for line in source.remarks()))


def _stopped_line(why: str, step: int, steps: int, workdir: Path, command: str) -> str:
    line = f"{why}: stopped after step {step} of {steps}, saved in {workdir}; the same command goes on from there"
    return f"{line}\ngo on with: {command}" if command else line


def _summary(run: config_lib.Config, task: Task, start: int, workdir: Path) -> str:
    parameters = sum(p.size for p in jax.tree.leaves(jax.eval_shape(lambda: task.init(jax.random.key(0)))[0]))
    kinds = ", ".join(sorted({d.device_kind for d in jax.devices()}))
    fresh = f"from {run.init_from}" if run.init_from else "from random weights"
    if run.init_resize and not run.init_from:
        fresh += ", so that config.init_resize changes nothing"
    begin = f"complete at step {start}" if start >= run.steps else f"from step {start}" if start else fresh
    return (
        f"{workdir}: {begin}, {run.steps} steps; {parameters:,} parameters, "
        f"{len(task.train_data):,} training examples, {jax.device_count()} device(s) ({kinds})"
    )
