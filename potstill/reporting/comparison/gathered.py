"""From run folders and results of suites to the models, measures and samples of a comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, Literal, TypeAlias

from potstill.evaluation.suites import SUITES
from potstill.evaluation.suites.run import Result
from potstill.evaluation.suites.scoring import is_of_trials
from potstill.reporting import settings
from potstill.reporting.comparison.samples import Sample, side_by_side
from potstill.reporting.comparison.table import Cost, Entry, Measure, Role
from potstill.reporting.formats import number
from potstill.reporting.published import Ours
from potstill.reporting.suites import scores_of_each, told
from potstill.run import PARTS, Run

OWN_ROWS = "held-out rows"
ROLES: dict[str, Role] = {
    "teacher": "teacher",
    "student_before": "untouched",
    "equal_time_sft": "sft",
    "student_after": "student",
}  # of what the run folder calls a model; in the order of the table
NAMES = {"teacher": "teacher", "student_before": "untouched student"}
Rows: TypeAlias = dict[str, dict[str, Any]]  # of one model, by example
Results: TypeAlias = Mapping[str, Sequence[Result]]  # of suites, by the key of the model


# --- Models -----------------------------------------------------------------------------------------------------------


def entries(runs: Sequence[Run]) -> list[Entry]:
    """Teachers, untouched students, then what was trained. Those of two runs that are one model stand once."""
    own = [_entry(run, part) for part in ROLES if part in NAMES for run in runs if _measured(run, part)]
    shown = {key: entry for entry in own for key in [_first(runs, entry.key)] if key == entry.key}
    trained = [_entry(run, part) for run in runs for part in ROLES if part not in NAMES and _measured(run, part)]
    return _named_apart([*shown.values(), *trained])


def between(runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
    """For each trained model the untouched student and the teacher that its gap lies between, where both are known."""
    return {
        _key_of(run, part): (_first(runs, _key_of(run, "student_before")), _first(runs, _key_of(run, "teacher")))
        for run in runs
        for part in ("equal_time_sft", "student_after")
        if _measured(run, "teacher") and _measured(run, "student_before")
    }


def run_of(runs: Sequence[Run], entry: Entry) -> Run:
    """The run that a model is of."""
    return next(run for run in runs if entry.key == f"{run.path}:{entry.role}")


def _entry(run: Run, part: str) -> Entry:
    measured, trained = _measured(run, part), part not in NAMES
    own = {"student_after": run.name, "equal_time_sft": f"{run.name}, equal-time SFT"} | NAMES
    return Entry(
        key=_key_of(run, part),
        name=own[part],
        role=ROLES[part],
        method={"student_after": settings.method(run), "equal_time_sft": "sft"}.get(part),
        cost=_cost(run, "baseline_" if part == "equal_time_sft" else "") if trained else None,
        num_parameters=number(measured.get("num_parameters")),
        size_on_disk_bytes=number(measured.get("size_on_disk_bytes")),
        tokens_per_s=number(measured.get("tokens_per_s")),
    )


def _measured(run: Run, part: str) -> dict[str, Any]:
    return run.evaluations().get(part, {})


def _key_of(run: Run, part: str) -> str:
    return f"{run.path}:{ROLES[part]}"


def _first(runs: Sequence[Run], key: str) -> str:
    """The key under which a teacher or untouched student stands: of the first run that has the same one."""
    there = [(run, part) for run in runs for part in NAMES if _measured(run, part)]
    wanted = next(_identity(run, part) for run, part in there if _key_of(run, part) == key)
    return next(_key_of(run, part) for run, part in there if _identity(run, part) == wanted)


def _identity(run: Run, part: str) -> Any:
    """What two models have in common that are one and were measured on the same rows: all that a run tells of them."""
    measured = _measured(run, part)
    perplexity = number(measured.get("perplexity"))
    made = run.read("student") if part == "student_before" else settings.stage(run).get("teacher")
    figures = [measured.get("num_parameters"), measured.get("num_tokens"), perplexity and float(f"{perplexity:.6g}")]
    return part, figures, json.dumps(made, sort_keys=True, default=str)


def _named_apart(found: Sequence[Entry]) -> list[Entry]:
    """Two models of one name with the run that each is of."""
    names = [entry.name for entry in found]
    of = {entry.key: entry.key.removesuffix(f":{entry.role}") for entry in found}
    return [
        replace(entry, name=f"{entry.name} ({of[entry.key]})") if names.count(entry.name) > 1 else entry
        for entry in found
    ]


def _cost(run: Run, prefix: str) -> Cost:
    """What the training took; what a teacher wrote beforehand is part of it."""
    cost = run.read("cost")
    texts = run.teacher_texts().values() if not prefix else ()
    seconds = [cost.get(f"{prefix}training_s"), *([] if prefix else [cost.get("teacher_text_s", 0.0)])]
    asked, written = cost.get(f"{prefix}teacher_tokens"), [card.get("written_tokens") for card in texts]
    known = [asked, *written]
    return Cost(
        None if seconds[0] is None else sum(seconds),
        None if None in known else sum(known),
        cost.get(f"{prefix}tokens"),
    )


# --- Measures ---------------------------------------------------------------------------------------------------------

# Of the run's own held-out rows: the name of the sums over tokens, what a mean is called, which way, how it is shown.
Unit = Literal["plain", "percent", "perplexity"]
OWN: tuple[tuple[str, str, Literal["lower", "higher"], Unit], ...] = (
    ("forward_kl_nats", "forward KL (nats)", "lower", "plain"),
    ("top1_agreement", "top-1 agreement", "higher", "percent"),
    ("nats", "perplexity", "lower", "perplexity"),
)


def own_measures(runs: Sequence[Run], models: Sequence[Entry]) -> list[Measure]:
    """What runs measured on their own held-out rows. Rows of two runs are one where text and place are the same."""
    rows, ends, how = own_rows(runs, models), between(runs), _told(runs)
    tokens = {key: float(row["scores"]["tokens"]) for some in rows.values() for key, row in some.items()}
    found = [
        Measure(name, better, {key: _token_means(some, score) for key, some in rows.items()}, how, unit, ends, tokens)
        for score, name, better, unit in OWN
    ]
    rouge = {key: _scores(some, "rouge_l") for key, some in rows.items()}
    right = {key: _scores(some, "accuracy") for key, some in rows.items()}
    found.append(Measure("Rouge-L", "higher", rouge, how, between=ends))
    found.append(Measure("accuracy", "higher", right, how, "percent", ends, of_trials=True))
    return [measure for measure in found if any(measure.scores.values())]


def own_rows(runs: Sequence[Run], models: Sequence[Entry]) -> dict[str, Rows]:
    """The held-out rows of every model, as they were measured."""
    return {e.key: {_example(row): row for row in run_of(runs, e).rows(PARTS[e.role])} for e in models}


def suite_measures(results: Results, runs: Sequence[Run]) -> Iterator[Measure]:
    """The primary figure of every suite."""
    ends = between(runs)
    for name in dict.fromkeys(result.suite for some in results.values() for result in some):
        own = {key: result for key, some in results.items() for result in some if result.suite == name}
        weighed = {key: scores_of_each(result) for key, result in own.items()}
        scores = {key: {id: one.value for id, one in some.items()} for key, some in weighed.items()}
        weights = {id: one.weight for some in weighed.values() for id, one in some.items()}
        protocol = SUITES[name].protocol
        title = f"{name}: {protocol.primary.replace('_', ' ')}"
        how = told(next(iter(own.values())))
        of_trials = is_of_trials(protocol.primary)
        yield Measure(title, protocol.better, scores, how, between=ends, weights=weights, of_trials=of_trials)


def _token_means(rows: Rows, score: str) -> dict[str, float]:
    """The mean over each row's tokens."""
    return {key: value / rows[key]["scores"]["tokens"] for key, value in _scores(rows, score).items()}


def _scores(rows: Rows, score: str) -> dict[str, float]:
    return {key: row["scores"][score] for key, row in rows.items() if row["scores"].get(score) is not None}


def _example(row: Mapping[str, Any]) -> str:
    """A row by what was asked and what would have been right: a file's name and line may be another file's too."""
    return sha256(json.dumps([row["id"], row["input"], row["references"]]).encode()).hexdigest()


def _told(runs: Sequence[Run]) -> str:
    measured = settings.measured_with(runs[0])
    return (
        f"{runs[0].name}'s held-out rows: figures of tokens on all that are measured, Rouge-L of "
        f"{settings.answers(runs[0])} of at most {measured['max_new_tokens']} tokens on the first "
        f"{measured['generate_examples']}"
    )


# --- Samples ----------------------------------------------------------------------------------------------------------


def samples(runs: Sequence[Run], models: Sequence[Entry], results: Results) -> list[Sample]:
    """What models answered, suite by suite after the held-out rows."""
    found = side_by_side(OWN_ROWS, models, own_rows(runs, models), "rouge_l")
    for name in dict.fromkeys(result.suite for some in results.values() for result in some):
        rows = {
            key: {row["id"]: row for row in result.rows}
            for key, some in results.items()
            for result in some
            if result.suite == name
        }
        found += side_by_side(name, models, rows, SUITES[name].protocol.primary)
    return found


# --- For published figures --------------------------------------------------------------------------------------------


def _model(run: Run, entry: Entry) -> str:
    """What a model was before it was trained here."""
    if entry.role == "teacher":
        return settings.teacher(run) or "unknown"
    made = run.read("student")
    cut = f", {len(made['kept_layers'])} of its {made['of_layers']} layers" if made.get("kept_layers") else ""
    return (settings.student_source(run) or "unknown") + cut


def ours(runs: Sequence[Run], models: Sequence[Entry], results: Results) -> list[Ours]:
    """Every figure of every suite, with whose it is."""
    return [
        Ours(
            suite=result.suite,
            figure=name,
            method=entry.method or entry.role,
            model=_model(run, entry),
            teacher=settings.teacher(run) if entry.role == "student" else None,
            mean=float(whole["mean"]),
            low=number(whole.get("low")),
            high=number(whole.get("high")),
            num_items=result.settings["num_items"],
            settings=result.settings["settings"],
            name=entry.name,
        )
        for entry in models
        for run in [run_of(runs, entry)]
        for result in results.get(entry.key, ())
        for name, score in result.scores.items()
        for whole in [score if isinstance(score, dict) else {"mean": score}]
        if number(whole.get("mean")) is not None
    ]
