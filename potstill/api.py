"""The verbs of potstill: plan, train, resume, evaluate, report. The command line calls these and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from potstill import recipe_io, run_models, stage, stages
from potstill import run as runs
from potstill.cache_building import Built, Watch, build
from potstill.checks.dry_run import Tried
from potstill.checks.dry_run import dry_run as try_recipe
from potstill.checks.models import check_depths, check_models
from potstill.checks.plan import plan as plan_recipe
from potstill.checks.planning.results import Plan
from potstill.errors import ConfigError, PotstillError, Stopped
from potstill.evaluation import standalone
from potstill.evaluation.suites import chosen
from potstill.evaluation.suites.frames import as_option, trained_frame
from potstill.evaluation.suites.run import Result, evaluate_models
from potstill.features import standalone as channels
from potstill.features.selection import Selection
from potstill.models.devices import device_named
from potstill.recipe import Recipe
from potstill.recipes import METHODS
from potstill.reporting import comparison
from potstill.reporting.card import write_card
from potstill.reporting.comparison import Comparison
from potstill.reporting.comparison.gathered import entries
from potstill.reporting.published import load_published
from potstill.reporting.report import write_report
from potstill.reporting.summary import summary
from potstill.run import Run
from potstill.training import runtime as runtimes


def train(recipe_or_method: str | Path | Recipe, *, allow_remote_code: bool = False, **overrides: Any) -> Run:
    """Run a recipe in a new folder under ``runs/`` and write its report.

    Args:
        recipe_or_method: a built-in method ("kd"), a recipe file, or a Recipe.
        allow_remote_code: let models run Python that comes with them.
        overrides: settings by key; dotted ones as ``**{"budget.steps": 20}`` or nested as ``budget={"steps": 20}``.
    Returns: the run, finished.
    Raises: ConfigError with every problem of the recipe at once; DataError, ModelError and the other PotstillErrors;
        Stopped after a signal, with everything saved.
    """
    recipe = recipe_io.load(recipe_or_method, overrides, methods=METHODS)
    with _new_run(recipe) as run:
        check_models(recipe, allow_remote_code)
        check_depths(recipe, allow_remote_code)
        for part in stages.parts(recipe, run, _conclude):
            stage.run(part.recipe, part.run, allow_remote_code=allow_remote_code)
    return run


def build_cache(
    recipe_or_method: str | Path | Recipe,
    *,
    watch: Watch | None = None,
    allow_remote_code: bool = False,
    **overrides: Any,
) -> list[Built]:
    """Ask the teachers of a recipe about all of its rows and keep what they say, for any run with the same models.

    What is there already is not asked again.

    Args: as for ``train``; ``watch`` is given a stream's name and how many of its rows are asked about, and returns
        what is told the number of each batch.
    Returns: of each stream where it is kept, and how many rows were asked about.
    Raises: ConfigError where nothing of it can be kept; CacheError for a folder of something else, or a full disk; and
        as ``train``.
    """
    recipe = recipe_io.load(recipe_or_method, overrides, methods=METHODS)
    check_models(recipe, allow_remote_code)
    return build(recipe, watch=watch or (lambda *_: lambda _: None), allow_remote_code=allow_remote_code)


def dry_run(recipe_or_method: str | Path | Recipe, *, allow_remote_code: bool = False, **overrides: Any) -> list[Tried]:
    """Try every stage of a recipe with one step of training, whether its models and data are on this machine or not.

    Args: as for ``train``.
    Returns: of each stage the size of its models, what stood in for what, and the loss.
    Raises: as ``train``, naming the stage; nothing is kept, and nothing is downloaded.
    """
    recipe = recipe_io.load(recipe_or_method, overrides, methods=METHODS)
    return try_recipe(recipe, _conclude, allow_remote_code=allow_remote_code)


def plan(recipe_or_method: str | Path | Recipe, *, allow_remote_code: bool = False, **overrides: Any) -> Plan:
    """What a recipe will take on this machine, from a few steps that are measured: see ``checks.plan``.

    Args: as for ``train``.
    Returns: parameters, steps, operations, and seconds, memory and disk by what takes them, of each stage.
    Raises: as ``train``; nothing is kept.
    """
    recipe = recipe_io.load(recipe_or_method, overrides, methods=METHODS)
    check_models(recipe, allow_remote_code)
    check_depths(recipe, allow_remote_code)
    return plan_recipe(recipe, allow_remote_code=allow_remote_code)


def resume(run: str | Path | Run, *, allow_remote_code: bool = False) -> Run:
    """Go on with a run from its newest whole checkpoint, to the same weights as if it had never stopped.

    Of several stages those that are finished are not done again.

    Args:
        run: a name under ``runs/``, a path, or a Run.
    Raises: ConfigError where there is no such run or another process is at it; CheckpointError where no checkpoint is
        whole.
    """
    run = run if isinstance(run, Run) else runs.find(run)
    recipe = recipe_io.load(run.recipe_file, methods=METHODS)
    with _alone(run):
        for part in stages.parts(recipe, run, _conclude):
            stage.run(part.recipe, part.run, allow_remote_code=allow_remote_code)
    return run


def evaluate(
    model: str | Path | Run,
    *,
    data: str | Path,
    teacher: str | None = None,
    answers: bool = True,
    device: str = "auto",
    seed: int = 1,
    allow_remote_code: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Measure a model, or a run's student, on rows of prompts and responses, all of which count as held-out.

    The models of a run are asked as its student was trained, with the words before its prompts, and their answers are
    taken for right as the run took them; ``settings`` say otherwise.

    Args:
        model: anything ``teacher`` may name in a recipe; a run, or "run:teacher", "run:untouched", "run:sft".
        data: a .jsonl, .csv or .parquet file, a named split as "cqa:test", or "starter".
        teacher: what to compare with; it must share the model's tokenizer.
        answers: whether prompts are answered, too; else only the text of the rows is measured.
        device: auto, cpu, cuda or mps.
        seed: of sampled answers.
        allow_remote_code: let models run Python that comes with them.
        settings: of a recipe's ``data`` and ``evaluation``, as ``**{"data.format": "dolly"}``.
    Returns: the figures by name, as in a run's ``eval/*.json``.
    Raises: ConfigError, DataError, ModelError, TeacherError.
    """
    named = _named(model, allow_remote_code)
    trained = run_models.trained_stage(model.path if isinstance(model, Run) else model)
    asked = standalone.as_trained(trained) if trained else {}
    # A recipe that needs no teacher, for the sake of its keys: they are named and checked as everywhere.
    given = {"data.path": str(data), **standalone.MEASURED, **asked, **settings}
    stage = recipe_io.load("sft", given, methods=METHODS).stage
    return standalone.evaluate(
        named,
        stage.data,
        stage.evaluation,
        teacher=teacher,
        answers=answers,
        device=device,
        seed=seed,
        allow_remote_code=allow_remote_code,
    )


def evaluate_suites(
    models: Sequence[str | Path | Run],
    suites: Sequence[str],
    *,
    out: str | Path = "evaluations",
    limit: int | None = None,
    seeds: Sequence[int] | None = None,
    max_new_tokens: int | None = None,
    frames: Sequence[str] | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    allow_remote_code: bool = False,
) -> list[Result]:
    """Ask models about data sets, or read what they answered before.

    Args:
        models: anything ``teacher`` may name in a recipe, or runs, which stand for their students; "run:teacher",
            "run:untouched" and "run:sft" are the others of a run.
        suites: names, see ``potstill.evaluation.suites``; "minillm" is several.
        out: where results are kept: rows and figures, by what they depend on.
        limit: items of each split, from the first; all where None.
        seeds: of sampled answers, in the place of a suite's own; none for greedy answers only.
        max_new_tokens: where an answer is cut, in the place of a suite's own.
        frames: words around each prompt, which stands where they say {prompt}, in the place of a suite's own; suites of
            options can be asked in several.
        data: a file of your own, for suites without a data set.
        device: auto, cpu, cuda or mps.
        allow_remote_code: let models run Python that comes with them.
    Returns: results, model by model.
    Raises: ConfigError for an unknown suite, and for frames that one cannot be asked in; DataError, ModelError.

    Without frames, a run whose student was trained with words before its prompts is told on stderr, with the frame that
    has them: a student that is asked without them is asked something that it was not trained to answer.
    """
    if Path(out).is_file():
        raise ConfigError(f"--out {out} is a file", "name a folder, which need not be there yet")
    asked = [suite.changed(seeds, max_new_tokens, frames) for suite in chosen(suites)]
    named = [_named(one, allow_remote_code) for one in models]
    if not frames and any(suite.protocol.max_frames != 0 for suite in asked):
        told = [one.name if isinstance(one, Run) else str(one) for one in models]
        _say_trained_frames(told, named, allow_remote_code)
    return evaluate_models(
        named,
        asked,
        root=Path(out),
        limit=limit,
        file=None if data is None else Path(data),
        device=str(device_named(device)),
        allow_remote_code=allow_remote_code,
    )


def attribute(
    model: str | Path | Run,
    *,
    data: str | Path,
    keep: int,
    out: str | Path,
    layers: str = "last-3",
    place: str = "residual",
    measure: str = "grad_activation",
    steps: int = channels.STEPS,
    seed: int = 0,
    limit: int = channels.LIMIT,
    batch_size: int = 8,
    device: str = "auto",
    watch: channels.Watch = iter,
    allow_remote_code: bool = False,
    **settings: Any,
) -> Selection:
    """Choose the channels of a teacher's layers that matter most for a task, or read what was chosen before.

    Args:
        model: anything ``teacher`` may name in a recipe; a run, or "run:teacher", "run:untouched", "run:sft".
        data: a .jsonl, .csv or .parquet file, a named split as "cqa:train", or "starter".
        keep: channels of each layer. out: the file they are kept in.
        layers: "all", "last-3" or "0,5,9", of the decoder. place: "residual" or "mlp".
        measure, steps, seed: as for ``potstill.features.attribution.channel_scores``.
        limit: rows used, from the first. batch_size: of them at a time. device: auto, cpu, cuda or mps.
        watch: given the batches, hands them on one by one; for a progress bar.
        allow_remote_code: let the model run Python that comes with it.
        settings: of a recipe's ``data``, as ``**{"data.format": "dolly"}``.
    Returns: the channels, and how sure they are.
    Raises: ConfigError, also where ``out`` holds another selection; DataError, ModelError, NumericsError.
    """
    # A recipe that needs no teacher, for the sake of its keys: they are named and checked as everywhere.
    rows = recipe_io.load("sft", {"data.path": str(data), **settings}, methods=METHODS).stage.data
    return channels.attribute(
        _named(model, allow_remote_code),
        rows,
        Path(out),
        layers=layers,
        count=keep,
        place=place,
        measure=measure,
        steps=steps,
        seed=seed,
        limit=limit,
        batch_size=batch_size,
        device=device,
        allow_remote_code=allow_remote_code,
        watch=watch,
    )


def report(run: str | Path | Run) -> dict[str, Any]:
    """Write a run's report again from its files, and those of its stages, and return its table."""
    run = run if isinstance(run, Run) else runs.find(run)
    for one in (*(part for part in run.stages if part.recipe_file.exists()), run):
        write_report(one)
    return summary(run)


def compare(
    names: Sequence[str | Path | Run],
    *,
    suites: Sequence[str] = (),
    baseline: str | None = None,
    published: str | None = None,
    page: str | Path | None = None,
    allow_remote_code: bool = False,
    **asked: Any,
) -> Comparison:
    """Put runs side by side: teachers, untouched students, fine-tuned baselines and students.

    Args:
        names: runs, by name or path.
        suites: what all their models are asked, those that have not been; see ``evaluate_suites``.
        baseline: the model that the others are set against, by its name in the table.
        published: a file of published figures, or the name of those that come with potstill.
        page: a file for the comparison as HTML.
        asked: ``out``, ``limit``, ``seeds``, ``max_new_tokens``, ``frames``, ``data`` and ``device`` of
            ``evaluate_suites``.
    Raises: ConfigError for a run that is not there, is named twice, or has measured nothing yet; DataError for
        published figures that cannot be read.
    """
    found = [(name if isinstance(name, Run) else runs.find(name)).result for name in names]
    _check_runs(found)
    _check_page(page)
    figures = load_published(published) if published else ()
    models = entries(found)
    chosen_baseline = comparison.baseline_of(models, baseline)  # refused before any suite is asked
    results = []
    if suites:
        keys = [entry.key for entry in models]
        results = evaluate_suites(keys, suites, allow_remote_code=allow_remote_code, **asked)
    each = len(results) // len(models)
    compared = comparison.compare(
        found,
        {entry.key: results[at * each : (at + 1) * each] for at, entry in enumerate(models)} if suites else {},
        baseline=chosen_baseline,
        published=figures,
    )
    if page is not None:
        from potstill.reporting.comparison.page import write_page  # draws, and so is slow to import

        write_page(compared, Path(page), title=", ".join(run.name for run in found))
    return compared


def _check_runs(found: Sequence[Run]) -> None:
    """Refuse runs that cannot stand in a table. Raises: ConfigError."""
    if not found:
        raise ConfigError("no run is named", "name one or more: `potstill compare first second`")
    seen: set[Path] = set()
    for run in found:
        if run.path.resolve() in seen:
            raise ConfigError(f"{run.name} is named twice", "name each run once")
        seen.add(run.path.resolve())
        if not run.evaluations():
            raise ConfigError(f"{run.name} has measured nothing yet", f"go on with `potstill resume {run.name}`")


def _check_page(page: str | Path | None) -> None:
    """Refuse a file that cannot be written, before what it is to show is measured. Raises: ConfigError."""
    if page is not None and Path(page).is_dir():
        raise ConfigError(f"--page {page} is a folder", "name a file, such as compare.html")


def _named(model: str | Path | Run, allow_remote_code: bool) -> str:
    """A folder, file or hub id for what the user named."""
    if isinstance(model, Run):
        return run_models.model_of(model, "student")
    return run_models.model_named(str(model), allow_remote_code=allow_remote_code)


def _say_trained_frames(models: Sequence[str], folders: Sequence[str], allow_remote_code: bool) -> None:
    """Of each model that is a run's, and was trained with words before its prompts: which, and how it is asked so."""
    for model, folder in zip(models, map(Path, folders), strict=True):
        if (trained := run_models.trained_stage(folder)) is None:
            continue
        if frame := trained_frame(trained.data, folder, allow_remote_code=allow_remote_code):
            said = f"{model}: trained with words before its prompts, and asked here without them"
            print(f"{said}; with them: {as_option(frame)}", file=sys.stderr, flush=True)


@contextmanager
def _new_run(recipe: Recipe) -> Iterator[Run]:
    """A folder for a new run, with its recipe in it, held by this process (and those torchrun started beside it)."""
    runtime = runtimes.start(recipe.device, recipe.dtype if recipe.dtype != "auto" else "float32")
    run = Run(runtime.share(runs.create(recipe.run, recipe.method).path if runtime.is_main else None))
    with _alone(run):
        if not runtime.is_main:
            yield run
            return
        runs.clear(run)
        runs.write_text(run.recipe_file, recipe_io.dump(recipe))
        before = runs.mark_latest(run)
        try:
            yield run
        except Stopped:
            raise
        except PotstillError:
            runs.discard(run, before)
            raise


@contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Hold a run's lock, so that no second command writes into its folder; say how to go on where it is stopped."""
    lock = FileLock(run.path / runs.LOCK, blocking=False) if runtimes.is_main() else nullcontext()
    try:
        with lock:
            yield
    except Stopped as stopped:
        raise Stopped(stopped.cause, f"go on with `potstill resume {run.name}`", exit_code=stopped.exit_code) from None
    except Timeout:
        raise ConfigError(
            f"{run.path}: another process is at work in it", "wait for it, or stop it, before going on with this run"
        ) from None


def _conclude(run: Run) -> None:
    """The report and the student's card, which that of several stages has from the last one."""
    if runtimes.is_main():
        write_report(run)
        if not run.stages:
            write_card(run, run.student)
