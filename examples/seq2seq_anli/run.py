"""MiniLLM for an encoder-decoder student on ANLI, from nothing but text: a small T5 learns to copy, then to answer.

    python examples/seq2seq_anli/run.py [OUT]

One T5 learns to copy text; a teacher is fine-tuned from it, and a student cut from it and put through the recipe
``anli_minillm`` whole, once on rows about animals and once on ANLI. ANLI's train split is not used: the dev rows of its
three rounds are trained on, and test rows of the first are measured. What is finished is not done again, so the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve each other

from results import write_results
from rows import write_all
from small import FULL, ROUNDS, SMOKE, Sizes, Task, copying, cut, distilling, fine_tuning, tasks

import potstill
from potstill import api, recipe_io
from potstill.errors import PotstillError, Stopped
from potstill.recipe import PretrainedStudent, Recipe
from potstill.recipes import METHODS
from potstill.run import RUNS, Run, has_trained, write_text

DATA = Path(os.environ.get("POTSTILL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
COPYING = "copying"
SECONDS = Path("seconds.json")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("seq2seq_anli"), help="a folder; the same goes on")
    parser.add_argument("--smoke", action="store_true", help="a few rows and steps: that it runs, not what it finds")
    args = parser.parse_args(argv)
    data = DATA.resolve()
    for needed in ("tinystories/train.jsonl", "anli/r1_dev.jsonl"):
        if not (data / needed).is_file():
            parser.error(f"there is no {data / needed}: set POTSTILL_DATA to a folder with tinystories/ and anli/")
    args.out.mkdir(parents=True, exist_ok=True)
    with chdir(args.out):  # the recipes name what they need from here
        reproduce(data, SMOKE if args.smoke else FULL)
        print(Path("results.md").read_text(encoding="utf-8"))
    print(f"all of it: {args.out / 'results.md'}")


def reproduce(data: Path, sizes: Sizes) -> None:
    """Everything that is not there yet, into the current folder."""
    freeze(sizes)
    plan = tasks(sizes)
    if not Path("t5").exists():  # written last
        with timed("rows"):
            write_all(data, sizes)
    train(COPYING, "sft", copying(sizes))
    untrained = f"{RUNS / COPYING}/student"
    for task in plan:
        teacher = f"{task.name}_teacher"
        train(teacher, teacher_recipe(task, untrained, sizes), {})
        models = {"student": untrained, "teacher": f"{RUNS / teacher}/student"}
        rounds = fine_tuning(task, task.student_epochs, sizes) | cut(untrained)
        settings = models | rounds | distilling(task, sizes)
        train(task.name, "anli_minillm", settings)
        if task.controls:
            train(f"{task.name}_single_step", single_step_recipe(task, settings), {})
    scored = {task.name: score_labels(task) for task in plan}
    write_results(Run(RUNS / COPYING), plan, scored, json.loads(SECONDS.read_text(encoding="utf-8")))


def freeze(sizes: Sizes) -> None:
    """Write down what this folder is made with. Raises: SystemExit where it was begun with something else."""
    file, text = Path("sizes.json"), json.dumps(asdict(sizes), indent=1) + "\n"
    if not file.exists():
        write_text(file, text)
    elif file.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{file.resolve()} says that this folder was begun with other sizes; name another folder")


def teacher_recipe(task: Task, model: str, sizes: Sizes) -> Recipe:
    """The recipe's first stages by themselves: its teacher is fine-tuned as its student is, from a whole model."""
    settings = {"student": model, **fine_tuning(task, task.teacher_epochs, sizes)}
    whole = recipe_io.load("anli_minillm", settings, methods=METHODS)
    return whole.model_copy(update={"method": "rounds", "stages": whole.stages[: len(ROUNDS)]})


def single_step_recipe(task: Task, settings: dict[str, Any]) -> Recipe:
    """The last stage once more, from the same student, with the paper's exact current step, which the system lacks."""
    whole = recipe_io.load("anli_minillm", {**settings, "single_step": True}, methods=METHODS)
    student = PretrainedStudent(model=f"{RUNS / task.name}/stages/3-{ROUNDS[-1]}/student")
    last = whole.stage.model_copy(update={"student": student})
    return whole.model_copy(update={"method": "minillm", "baseline": "none", "stages": (last,)})


def train(name: str, recipe: str | Recipe, settings: dict[str, Any]) -> None:
    """Run a recipe as ``runs/<name>``, or go on with it, unless it is finished.

    Raises: Stopped, with everything saved; other PotstillErrors.
    """
    run = Run(RUNS / name)
    if run.report_file.exists():
        return
    with timed(name):
        if has_trained(run.path):
            potstill.resume(run)
        else:
            potstill.train(recipe, run=name, **settings)


def score_labels(task: Task) -> dict[str, dict[str, Any]]:
    """Of each model of a task how often the likeliest label is right, whatever it would write: figures by model."""
    parts = {name: f"{task.name}:{name}" for name in ("teacher", "untouched", "student")}
    if task.controls:
        parts |= {"single_step": f"{task.name}_single_step", "sft": f"{task.name}:sft"}
    with timed(f"{task.name}_labels"):
        found = api.evaluate_suites(
            list(parts.values()),
            ["classification"],
            data=task.test,
            max_new_tokens=2,
            device="cpu",
        )
    return {part: result.scores for part, result in zip(parts, found, strict=True)}


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add processor and wall time to ``seconds.json``; what a killed process has taken is not in it."""
    begun = (time.process_time(), time.monotonic())
    try:
        yield
    finally:
        found = json.loads(SECONDS.read_text(encoding="utf-8")) if SECONDS.exists() else {}
        before = found.get(name, (0.0, 0.0))
        spent = (time.process_time() - begun[0], time.monotonic() - begun[1])
        found[name] = [round(old + new, 1) for old, new in zip(before, spent, strict=True)]
        write_text(SECONDS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Stopped as stopped:
        print(f"{stopped.cause}; the same command goes on from there", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except PotstillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
