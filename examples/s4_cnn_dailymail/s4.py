"""A public study of distillation on CNN/DailyMail, end to end: two fine-tunings, five methods, summaries, ROUGE.

    python examples/s4_cnn_dailymail/s4.py --out runs/s4

Runs on a small pair of models unless told otherwise. What is finished is not done again, so the same command goes on
where it was stopped. ``--full --dry-run`` shows the full-size steps (gpt2-medium to gpt2) and downloads nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import chdir
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve each other

from articles import read_articles, suggested_max_new_tokens, told, window_of, write_rows
from dry_run import show
from scores import write_results
from steps import STEPS, STUDENT, TEACHER, held_out, overrides_of, parameters, recipe_of, run_step, small, tiny
from summaries import greedy_summaries, write_predictions

from potstill.data.prepare import prepare_all
from potstill.errors import PotstillError, Stopped
from potstill.evaluation.metrics.summaries import lead
from potstill.models.loading import load_tokenizer
from potstill.recipe import Data, Evaluation
from potstill.run import read_jsonl, write_text

DATA = Path(os.environ.get("POTSTILL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
SPLITS = ("train", "validation", "test")
LEAD = "lead_3"
TEST = Path("data", "test.jsonl")


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    if args.dry_run:
        for part in show():
            print(part)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    with chdir(args.out):  # the recipes name what they need from here
        reproduce(args)
        print(Path("results.md").read_text(encoding="utf-8"))
    print(f"all of it: {args.out / 'results.md'}")


def reproduce(args: argparse.Namespace) -> None:
    """Everything that is not there yet, into the current folder."""
    sizes = {} if args.full else tiny(small(args.steps)) if args.smoke else small(args.steps)
    overrides = {step: overrides_of(step, sizes, args.teacher, args.student) for step in STEPS}
    digests = {split: _digest(args.data / f"{split}.csv") for split in SPLITS}
    freeze({"overrides": overrides, "limit": args.limit, **digests})

    stage = recipe_of(STUDENT, overrides[STUDENT]).stage
    data = make_data(args, stage.data)
    for step in STEPS:
        print(f"{step}: {'done' if run_step(step, overrides[step]) else 'was done before'}", flush=True)

    kept = {row["id"] for row in read_jsonl(TEST)}
    test = [article for article in read_articles(args.data / "test.csv", args.limit)[0] if article.id in kept]
    settings = Evaluation(max_new_tokens=data["max_new_tokens"])
    for name in (LEAD, *STEPS):
        file = Path("predictions", f"{name}.jsonl")
        if not file.exists():
            leads = {article.id: lead(article.text) for article in test}
            written = leads if name == LEAD else greedy_summaries(name, TEST, stage.data, settings)
            write_predictions(file, test, written)
    models = {"teacher": parameters(TEACHER), "student": parameters(STUDENT)}
    facts = {**models, "steps of each training": stage.budget.steps, "batch": stage.batch.size, **data}
    write_results(Path(), (LEAD, *STEPS), STUDENT, facts, held_out())


def freeze(settings: dict[str, Any]) -> None:
    """Write down what this folder is made with.

    Raises: SystemExit where it was begun with something else: its rows would not be comparable.
    """
    file, text = Path("settings.json"), json.dumps(settings, indent=1) + "\n"
    if not file.exists():
        write_text(file, text)
    elif file.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{file.resolve()} says that this folder was begun with other settings; give another --out")


def make_data(args: argparse.Namespace, data: Data) -> dict[str, Any]:
    """Write the three splits as rows, cut to the window, unless that is done; what is to be told of them."""
    file = Path("data", "facts.json")
    if file.exists():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    tokenizer = load_tokenizer(_model_of_tokenizer(args))
    facts: dict[str, Any] = {}
    for split in SPLITS:
        articles, unusable = read_articles(args.data / f"{split}.csv", args.limit)
        rows = Path("data", f"{split}.jsonl")
        counts = write_rows(articles, tokenizer, data, rows, room_for_summary=split != "test")
        facts[split] = told(counts | {"unusable": unusable})
        print(f"{split}: {facts[split]}")
    train = prepare_all(data.model_copy(update={"path": "data/train.jsonl", "heldout": None}), tokenizer)
    suggested = suggested_max_new_tokens([len(row.response_ids) for row in train])
    facts["max_new_tokens"] = min(suggested, window_of(data) - data.max_prompt_tokens)
    print(f"max_new_tokens {facts['max_new_tokens']}: 95% of the training summaries have at most {suggested} tokens")
    write_text(file, json.dumps(facts, indent=1) + "\n")
    return facts


def _model_of_tokenizer(args: argparse.Namespace) -> str:
    if args.full and args.student is None:
        return "gpt2"
    return args.student if isinstance(args.student, str) else args.teacher


def _digest(file: Path) -> str:
    if not file.is_file():
        raise SystemExit(f"there is no {file}; --data names the folder of train.csv, validation.csv and test.csv")
    return sha256(file.read_bytes()).hexdigest()


def _resolved(name: str) -> str:
    """A folder's whole path, since the current folder changes; any other name as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder; one that is there already is gone on with")
    parser.add_argument("--data", type=Path, default=DATA / "cnn_dailymail", help="train.csv, validation.csv, test.csv")
    parser.add_argument("--teacher", help="a model: an embedded name, a folder or a hub id; default stories260k")
    parser.add_argument("--student", help="likewise; default: layers of the teacher, cut before it is fine-tuned")
    parser.add_argument("--student-layers", type=int, default=2, help="how many, where the student is cut")
    parser.add_argument("--steps", type=int, default=60, help="of each training; full/ has its own")
    parser.add_argument("--limit", type=int, help="articles of each split, from the first")
    parser.add_argument("--smoke", action="store_true", help="2 steps, 8 articles: that it runs, not what it finds")
    parser.add_argument("--full", action="store_true", help="the recipes in full/ as they are")
    parser.add_argument("--dry-run", action="store_true", help="with --full: show everything, train nothing")
    args = parser.parse_args(argv)
    if args.dry_run and not args.full:
        parser.error("--dry-run shows the full-size steps: add --full")
    if not (args.dry_run or args.out):
        parser.error("--out is needed")
    if args.smoke:
        args.steps, args.limit = 2, 8
    args.out, args.data = args.out and args.out.resolve(), args.data.resolve()
    if not args.full:
        args.teacher = args.teacher or str(DATA / "stories260k")
    args.teacher, args.student = (name and _resolved(name) for name in (args.teacher, args.student))
    if not args.full and args.student is None:
        cut = {"kind": "pruned", "model": args.teacher, "keep_layers": args.student_layers, "freeze_embeddings": False}
        args.student = cut
    return args


if __name__ == "__main__":
    try:
        main()
    except Stopped as stopped:
        print(f"{stopped.cause}; the same command goes on from there", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except PotstillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
