"""Run a sweep: launch the unfinished jobs, write the report, then list the failures.

All state is in the folder of the sweep. The same command with the same `hydra.sweep.dir` resumes it:
finished jobs are kept (recognised by the hash of their resolved config), started ones resume from their
checkpoints, failed ones are retried, and a job whose config has changed is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from jepa_lm.loggers.settings import wandb_settings
from jepa_lm.study.begun import FOLDER_KEY, announced, checked, registered
from jepa_lm.study.composing import Composer, composed_with
from jepa_lm.study.dry_run import CheckpointBytes, dry_run
from jepa_lm.study.duration import Launching, workers
from jepa_lm.study.ladder import costs
from jepa_lm.study.launch import launch, wandb_group
from jepa_lm.study.manifest import Job, Manifest
from jepa_lm.study.plan import CheckMetric, check_metrics, plan_study, plan_sweep
from jepa_lm.study.planned_arms import RunFlops
from jepa_lm.study.power import MINIMUM_PAIRS
from jepa_lm.study.request import Compose, Composed, Request, read_request
from jepa_lm.study.runs import Run
from jepa_lm.study.search import Search
from jepa_lm.study.sequential import LOOKS, ends
from jepa_lm.study.solved import LEAST_SEEDS
from jepa_lm.study.tuning import FOLDER as TUNING
from jepa_lm.study.tuning import TEXT, Draws, plan_tuning, read_tuning, to_be_tuned
from jepa_lm.utils.config import resolve
from jepa_lm.utils.crash import bugs_kept
from jepa_lm.utils.errors import SweepError, UserError, in_words, warn
from jepa_lm.utils.files import sweep_up
from jepa_lm.utils.going_on import same_command
from jepa_lm.utils.locks import only_writer
from jepa_lm.utils.metrics import METRICS
from jepa_lm.utils.output import say, tell
from jepa_lm.utils.quoting import one_line

MOST_REASONS = 5


def sweep(
    overrides: Sequence[Override],
    config: DictConfig,
    loader: ConfigLoader,
    launcher: Launcher,
    checkpoint_bytes: CheckpointBytes,
    flops: RunFlops,
    check_metric: CheckMetric,
) -> list[JobReturn]:
    """Plan a sweep or study, check it against its folder, run it and report.

    Args:
        overrides: parsed overrides, those of a `sweep=` file before those of the command line.
        config: config of the whole command, with its `hydra` node.
        loader: composes the configs of the jobs.
        launcher: runs the jobs.
        checkpoint_bytes: estimates the size of a run's checkpoints, for a dry run.
        flops: counts the FLOPs per token of a run, for arms of equal cost and for a dry run.
        check_metric: refuses a metric that the data of a config do not have.

    Returns:
        The launcher's results for the jobs that had to run; none after a dry run.

    Raises:
        UserError: the plan cannot be run, or differs from what is in the folder.
        SweepError: some jobs failed; the others are done.
    """
    folder = Path(config.hydra.sweep.dir)
    assert isinstance(loader, ConfigLoaderImpl)
    composer = Composer(loader, config)

    def compose(words: Sequence[str]) -> Composed:
        return composed_with(composer, words)

    asked = read_request(overrides)
    at_once = workers(config.hydra.launcher)

    def described(
        manifest: Manifest, configs: Mapping[str, Any], total: int, below: str = ""
    ) -> list[JobReturn]:
        check_metrics(manifest, configs, check_metric)
        manifest, configs = checked(manifest, configs, folder / below)
        how = Launching(at_once, total, costs(manifest))
        for line in dry_run(manifest, configs, folder / below, how, checkpoint_bytes, flops):
            say(line)
        return []

    trials = config.hydra.sweeper.trials
    if trials is not None:
        if config.get("study") is not None:
            raise UserError(
                f"hydra.sweeper.trials={trials}: a search has no controls; drop study={config.study.name}"
            )
        search = Search(asked, compose, config.task_name, config.hydra.sweeper)
        if config.hydra.sweeper.dry_run:
            return described(*next(search.batches(folder)), search.total)
        with only_writer(folder, FOLDER_KEY), bugs_kept(folder):
            for manifest, configs in search.batches(folder):
                check_metrics(manifest, configs, check_metric)
                how = Launching(at_once, search.total)
                manifest, configs = checked(manifest, configs, folder)
                returned = run(manifest, configs, folder, launcher, how)
            return conclude(manifest, folder, returned)
    if asked.intervals:
        key = next(iter(asked.intervals))
        raise UserError(
            f"{key}: an interval is for a search; set hydra.sweeper.trials, or list values"
        )
    draws: Draws | None = None
    if config.get("study") is None:
        manifest, configs = plan_sweep(asked, compose, config.task_name)
    else:
        manifest, configs, draws = _plan_study(
            asked, compose, resolve(config.study), flops, check_metric
        )
    if config.hydra.sweeper.dry_run or (config.get("study") or {}).get("dry_run"):
        if draws is not None and draws.finished(folder):
            manifest, configs = draws.study(folder)
        elif draws is not None:
            described(draws.plan, draws.configs, len(draws.plan.jobs), TUNING)
        return described(manifest, configs, len(manifest.jobs))
    check_metrics(manifest, configs, check_metric)
    how = Launching(at_once, len(manifest.jobs), costs(manifest))
    with only_writer(folder, FOLDER_KEY), bugs_kept(folder):
        sweep_up(folder)
        if draws is not None:
            announced(draws.untuned, folder)
            tune(draws, folder, launcher, at_once)
            manifest, configs = draws.study(folder)
            for name, best in manifest.tuning.items():
                tell(f"tuned {name}: {best.says}")
        manifest, configs = checked(manifest, configs, folder)
        for look in LOOKS[:-1] if manifest.seeds == "sequential" else ():
            so_far = manifest.first(look)
            returned = run(so_far, configs, folder, launcher, how)
            if at_its_end(so_far, folder, look):
                return conclude(so_far, folder, returned)
        return conclude(manifest, folder, run(manifest, configs, folder, launcher, how))


def _plan_study(
    asked: Request,
    compose: Compose,
    study: Mapping[str, Any],
    flops: RunFlops,
    check_metric: CheckMetric,
) -> tuple[Manifest, dict[str, Any], Draws | None]:
    """Plan a study, and its draws if it is tuned; warn if it has too few seeds for a verdict."""
    tuning = read_tuning(study.get("tuning"), asked.seeds(compose))
    if tuning is not None:
        asked = asked.with_default(TEXT, str(tuning.text))
        # The data must have text for tuning; every data has this metric.
        first = compose(asked.fixed_with(asked.cells()[0]))
        check_metric(first.resolved(first.seed), "val/nll")
    manifest, configs = plan_study(asked, compose, study, flops)
    draws = None
    if tuning is not None:
        plan_tuned = partial(plan_study, asked, compose, study, flops)
        manifest = to_be_tuned(manifest, tuning)
        draws = Draws(manifest, *plan_tuning(manifest, configs, compose, tuning), plan_tuned)
    pairs = max(len(group.runs) for group in manifest.groups)
    counted = manifest.metric is not None and METRICS[manifest.metric].bimodal
    least = LEAST_SEEDS if counted else MINIMUM_PAIRS
    if pairs < least:
        warn(f"seed: {pairs} planned; a verdict needs {least} or more: 'seed=range(1,6)'")
    return manifest, configs, draws


def tune(draws: Draws, folder: Path, launcher: Launcher, at_once: int) -> None:
    """Make the draws of a study that are not finished, and report on them.

    Raises:
        SweepError: the machine ended some of them.
    """
    below = folder / TUNING
    below.mkdir(exist_ok=True)
    how = Launching(at_once, len(draws.plan.jobs), below=TUNING)
    plan, configs = checked(draws.plan, draws.configs, below)
    run(plan, configs, below, launcher, how)
    report(plan, below, say_verdicts=False)
    lost = [job.folder for job in plan.jobs if Run(below / job.folder).lost]
    if lost:
        raise SweepError(
            f"{len(lost)} of {len(plan.jobs)} draws have no score because of the machine, such as {lost[0]}; "
            f"to retry them: {same_command({FOLDER_KEY: str(folder)})}"
        )


def at_its_end(manifest: Manifest, folder: Path, look: int) -> bool:
    """Tell the words of a sequential study at a look, and return whether it ends there.

    It also ends if runs are missing, which the same command may still make.
    """
    from jepa_lm.study.results import collect

    if any(Run(folder / job.folder).lost for job in manifest.jobs):
        return True
    treatments = collect(folder).treatments
    over = ends(
        (t.word, t.main.effect, [a.effect for a in t.against if a.gate]) for t in treatments
    )
    words = ", ".join(t.word for t in treatments)
    tell(f"after {look} seeds: {words}; {'the study ends here' if over else 'it goes on'}")
    return over


def run(
    manifest: Manifest,
    configs: Mapping[str, Any],
    folder: Path,
    launcher: Launcher,
    how: Launching,
) -> dict[str, JobReturn]:
    """Launch the unfinished jobs of a plan that was checked, and return the launcher's results by folder."""
    manifest = registered(manifest, folder)
    manifest.save(folder)
    todo = [job for job in manifest.jobs if not Run(folder / job.folder).finished]
    tell(
        f"{len(manifest.jobs)} jobs in {folder}, {len(manifest.jobs) - len(todo)} of them already finished"
    )
    for note in manifest.notes:
        warn(note)
    return launch(manifest, configs, todo, folder, launcher, how)


def conclude(
    manifest: Manifest, folder: Path, returned: Mapping[str, JobReturn]
) -> list[JobReturn]:
    """Write the report, then raise an error if jobs failed.

    Raises:
        SweepError: naming the jobs that failed, and why.
    """
    report(manifest, folder)
    failed = failures(manifest.jobs, folder)
    if failed:
        told = [f"{name}: {why}" for name, why in list(failed.items())[:MOST_REASONS]]
        more = [f"and {len(failed) - MOST_REASONS} more"] if len(failed) > MOST_REASONS else []
        raise SweepError(
            f"{len(failed)} of {len(manifest.jobs)} jobs failed; {'; '.join([*told, *more])}; to retry them: "
            f"{same_command({'hydra.sweep.dir': str(folder)})}"
        )
    return list(returned.values())


def failures(jobs: Sequence[Job], folder: Path) -> dict[str, str]:
    """Return the reason for each unfinished job, by folder, as its run recorded it."""
    found = {}
    for job in jobs:
        run = Run(folder / job.folder)
        if not run.finished:
            found[job.folder] = one_line(run.summary.get("error") or f"is {run.status}")
    return found


def report(manifest: Manifest, folder: Path, *, say_verdicts: bool = True) -> None:
    """Write the report beside the runs and print its verdicts; if runs log to W&B, attach it there too."""
    from jepa_lm.study.attach import attach_report
    from jepa_lm.study.report import tell as tell_verdicts

    html = tell_verdicts(folder, tell if say_verdicts else lambda text: None)
    tell(f"report: {html}")
    configs = (Run(folder / job.folder).config for job in manifest.jobs)
    settings = next((found for config in configs if (found := wandb_settings(config))), None)
    if settings is not None:
        group = settings.get("group") or wandb_group(manifest, folder)
        try:
            attach_report(html, settings=settings, group=str(group))
        except (
            Exception
        ) as error:  # a failing service must not lose the report, which is in the folder
            warn(f"logger=wandb: the report could not be attached: {in_words(error)}")
