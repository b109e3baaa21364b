"""What in a comparison cannot be compared, and on which rows what was chosen: in plain sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from potstill.evaluation.suites.run import Result
from potstill.reporting import settings
from potstill.reporting.comparison.table import Cost, Entry
from potstill.reporting.formats import significant
from potstill.run import Run, json_object

MUCH = 1.2  # ratio of two costs from which they are not one budget
ALWAYS = "one training each: intervals and p are over examples and say nothing of another seed"


def notes(runs: Sequence[Run], entries: Sequence[Entry], results: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """What is not the same in all runs, and what follows from it."""
    facts: tuple[tuple[str, Callable[[Run], Any]], ...] = (
        ("the held-out rows differ: no figure on one run's own can be set against another's", held_out),
        ("the answers were written under other settings: Rouge-L cannot be compared", settings.measured_with),
        ("the teachers differ: divergences and agreement are from different models", _teacher),
        ("the data trained on differs", _trained_on),
        ("the students began differently: compare what each gained, not where it ended", _began),
    )
    for what, fact in facts:
        found = [(run.name, value) for run in runs if (value := fact(run)) is not None]
        if others := [name for name, value in found if value != found[0][1]]:
            yield f"{what} ({', '.join(others)} from {found[0][0]})"
    yield from _budgets([entry.cost for entry in entries if entry.cost])
    if unfinished := [run.name for run in runs if "student_after" not in run.evaluations()]:
        yield f"not finished: {', '.join(unfinished)}"
    if old := [run.name for run in runs if run.evaluations() and not any(map(run.rows, run.evaluations()))]:
        yield f"without figures of each held-out row, which older versions did not write: {', '.join(old)}"
    yield from _asked_differently(results)
    yield ALWAYS


def _budgets(costs: Sequence[Cost]) -> Iterator[str]:
    """Costs that are not one budget."""
    seconds = [cost.training_s for cost in costs if cost.training_s]
    if seconds and max(seconds) > MUCH * min(seconds):
        least, most = (significant(some, 3) for some in (min(seconds), max(seconds)))
        yield f"the trainings took from {least} to {most} s: none is at equal time"
    for of, name in (("teacher_tokens", "the teacher was asked about"), ("student_tokens", "students were trained on")):
        tokens = [count for cost in costs if (count := getattr(cost, of))]
        if tokens and max(tokens) > MUCH * min(tokens):
            yield f"{name} from {min(tokens):,} to {max(tokens):,} tokens"


def _asked_differently(results: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """Suites in which models were not asked quite the same."""
    for name in dict.fromkeys(result.suite for some in results.values() for result in some):
        own = [result for some in results.values() for result in some if result.suite == name]
        if len({result.settings["items_sha256"] for result in own}) > 1:
            yield f"{name}: the models were asked different items"
        if len({json.dumps(result.settings["settings"], sort_keys=True) for result in own}) > 1:
            yield f"{name}: the models were asked under different settings"
        shortened = sorted({result.scores["num_shortened"] for result in own})
        if len(shortened) > 1:
            yield f"{name}: of some models {shortened[0]} inputs were shortened, of others {shortened[-1]}"


# --- Hygiene ----------------------------------------------------------------------------------------------------------


def hygiene(runs: Sequence[Run], results: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """On which rows each checkpoint was chosen, and how often test rows have been looked at."""
    chosen = sorted({settings.measured_with(run)["best_by"] or "an unknown figure" for run in runs})
    noisy = [name for key, name in (("rouge_l", "Rouge-L"), ("accuracy", "accuracy")) if key in chosen]
    newest = f" (of those within a standard error of the highest {' or '.join(noisy)} the newest)" if noisy else ""
    yield (
        f"Each student is the checkpoint that was best on the validation rows, by {' or '.join(chosen)}{newest}; its "
        "held-out rows were measured once, after training, and chose nothing."
    )
    if found := next(filter(None, map(how_often_seen, runs)), None):
        yield found
    for name, count in _models_asked(results).items():
        if count > 1:
            yield f"{name}: {count} models have been asked these items so far, the teacher and the untouched included"


def how_often_seen(run: Run) -> str | None:
    """What follows from other runs having been measured on the same rows; None where there are none."""
    if len(seen := looked_at(run)) < 2:
        return None
    return (
        f"The held-out rows of {run.name} were measured in {len(seen)} runs of its folder. Whoever picks the best of "
        "them by these figures has chosen on the test rows: confirm it on rows that no run has seen."
    )


def looked_at(run: Run) -> list[str]:
    """Names of the runs beside it, itself included, that have measured a student on the same held-out rows."""
    siblings = sorted(run.path.resolve().parent.iterdir()) if run.path.exists() else []
    others = [Run(path) for path in siblings if not path.is_symlink() and (path / "recipe.yaml").is_file()]
    own = _held_out_file(run)
    measured = [other for other in others if other.glance("eval/student_after")]
    return [other.name for other in measured if own is not None and _held_out_file(other) == own]


def _models_asked(results: Mapping[str, Sequence[Result]]) -> dict[str, int]:
    """How many models have answered the items of each suite, those of earlier commands included."""
    found: dict[str, int] = {}
    for result in (result for some in results.values() for result in some):
        if result.suite not in found:
            files = result.folder.parent.glob(f"{result.suite}-*/settings.json")
            told = [one for file in files if (one := json_object(file.read_bytes()))]
            same = [one for one in told if one.get("items_sha256") == result.settings["items_sha256"]]
            found[result.suite] = len({settings.value_at(one, "model", "fingerprint") for one in same})
    return found


# --- Facts of a run ---------------------------------------------------------------------------------------------------


def held_out(run: Run) -> Any:
    """What says which rows were held out: the files by content, how rows become tokens, and how many were measured."""
    data = settings.stage(run).get("data")
    rest = {k: v for k, v in data.items() if k not in ("path", "heldout")} if isinstance(data, dict) else data
    measured = [run.evaluations().get("student_after", {}).get(key) for key in ("num_examples", "num_tokens")]
    return _held_out_file(run), rest, measured


def _held_out_file(run: Run) -> Any:
    """The hash of the held-out rows' own file, or of the one that they were taken from."""
    hashes = (settings.value_at(run.glance("data"), "files", name, "sha256") for name in ("heldout", "train"))
    return next(filter(None, hashes), None)


def _teacher(run: Run) -> str | None:
    """None where no teacher was measured: there is nothing of its to compare with then."""
    return settings.teacher(run) if "teacher" in run.evaluations() else None


def _trained_on(run: Run) -> Any:
    train = run.read("data").get("files", {}).get("train", {})
    return train.get("sha256") if isinstance(train, dict) else None


def _began(run: Run) -> Any:
    before = run.evaluations().get("student_before", {})
    return [before.get(key) for key in ("perplexity", "num_parameters")]
