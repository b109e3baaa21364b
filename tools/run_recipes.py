"""Run every built-in recipe for a few steps from one warmed-up student, and write docs/recipes/index.md's table.

    python tools/run_recipes.py --data FOLDER

FOLDER holds Dolly's rows in MiniLLM's form, dev.jsonl and valid.jsonl. The student is first trained by ``kd``; then
each recipe goes on from it for 20 steps at its own defaults. Every student is measured by its own recipe's divergence,
on held-out prompts and on the kind of text the recipe trains on: the references, the teacher's responses, or what the
student wrote before the 20 steps. The same tokens are measured before and after; the interval is a bootstrap over
examples. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import potstill
from potstill import objectives, recipe, recipe_io
from potstill.data.examples import Tokenised
from potstill.data.prepare import prepare_all
from potstill.errors import ConfigError
from potstill.models.families import Causal
from potstill.models.loading import load
from potstill.objectives.chunked import select
from potstill.recipes import METHODS
from potstill.run import Run, find, write_text
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Single
from potstill.sampling.writer import LocalWriter
from potstill.sources.dataset import batches
from potstill.teachers.local import LocalTeacher, Remembering

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes" / "index.md"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
WARM_UP_STEPS, STEPS = 120, 20
RESAMPLES = 10_000
TOKENS = 64  # of a held-out response, whoever wrote it
COMPARED = [  # neither the warm-up, nor without a teacher, nor of several stages
    name for name in METHODS if name not in ("kd", "sft") and len(recipe_io.load(name, {}, methods=METHODS).stages) == 1
]
TEXTS = {"data": "the references", "teacher": "the teacher's text", "own": "the student's own text"}


@dataclass(frozen=True)
class Yardstick:
    """A recipe's own divergence, and the kind of text it is taken on."""

    objective: recipe.AnyDivergence
    text: str

    @property
    def name(self) -> str:
        return f"{self.objective.name} on {TEXTS[self.text]}"


def yardstick(built: recipe.Recipe) -> Yardstick:
    """The first divergence of a recipe; reverse KL for sampled tokens' rewards, forward KL for hard targets."""
    for stream in built.stage.streams:
        text = text_of(stream.source)
        for term in stream.terms:
            match term.objective:
                case recipe.InterpolatedForwardKL() | recipe.CrossEntropy():
                    return Yardstick(recipe.ForwardKL(), text)
                case recipe.PolicyGradient():
                    return Yardstick(recipe.ReverseKL(), text)
                case recipe.SkewForwardKL(skew=recipe.CurriculumSkew(start=skew)):
                    return Yardstick(recipe.SkewForwardKL(skew=skew), text)
                case recipe.TeacherSection():
                    return Yardstick(term.objective, text)
    raise ValueError(f"{built.method} has no divergence")


def text_of(source: recipe.AnySource) -> str:
    """The kind that a source ends on: a mixture on the student's own, DistiLLM's replay, which begins at 0, on data."""
    if isinstance(source, recipe.RolloutSource | recipe.MixtureSource):
        rollout = recipe.rollout_of(source)
        return "teacher" if rollout and rollout.policy.name == "teacher" else "own"
    return "data"


# --- Measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What all students are measured with."""

    teacher: Remembering
    rows: Sequence[Tokenised]
    decoding: Decoding
    pad_id: int
    before: Causal
    texts: dict[str, list[Tokenised]] = field(default_factory=dict)

    def text(self, kind: str) -> list[Tokenised]:
        """The held-out prompts with responses of a kind; the student's own are those of before."""
        if kind == "data":
            return list(self.rows)
        if kind not in self.texts:
            family = self.teacher.family if kind == "teacher" else self.before
            writer = LocalWriter(Single(), [family], self.decoding, slots=8)
            responses = writer.write([row.prompt_ids for row in self.rows], seeds=range(len(self.rows)))
            written = zip(self.rows, responses, strict=True)
            self.texts[kind] = [
                replace(row, example_id=f"{kind} {row.example_id}", response_ids=response.ids)
                for row, response in written
            ]
        return self.texts[kind]

    @torch.no_grad()
    def values(self, by: Yardstick, student: Causal) -> Tensor:
        """The mean over each example's tokens."""
        settings = by.objective.model_dump(exclude={"name"})
        objective = partial(getattr(objectives, by.objective.name), **settings)
        found = []
        for batch in batches(self.text(by.text), 8, self.pad_id):
            sums = torch.zeros(len(batch), dtype=torch.float64)
            positions = select(student.output(batch), self.teacher.signal(batch), batch, batch.response_mask)
            for _, chunk in positions.chunks():
                sums.index_add_(0, chunk.places[0], objective(chunk.student_logits, chunk.teacher).double())
            found.append(sums / batch.response_mask.sum(1))
        return torch.cat(found)


def interval(differences: Tensor) -> tuple[float, float]:
    """95% of the bootstrap's means."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(differences), (RESAMPLES, len(differences)), generator=generator)
    low, high = torch.quantile(differences[drawn].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


# --- Running ----------------------------------------------------------------------------------------------------------


def run_once(name: str, method: str, **settings: Any) -> Run:
    """The run of this name: trained, gone on with, or as it is."""
    try:
        found = find(name)
    except ConfigError:
        return potstill.train(method, run=name, baseline="none", **settings)
    return found if found.report_file.exists() else potstill.resume(found)


def student_of(folder: Path | str, vocab_size: int | None = None) -> Causal:
    return Causal(load(str(folder)).model.float().eval(), vocab_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of dev.jsonl and valid.jsonl")
    parser.add_argument("--teacher", default="smollm2-135m-instruct")
    parser.add_argument("--examples", type=int, default=24, help="held-out prompts that are measured")
    parser.add_argument("--methods", nargs="*", default=COMPARED)
    options = parser.parse_args()
    common: dict[str, Any] = {
        "data": {
            "path": str(options.data / "dev.jsonl"),
            "heldout": str(options.data / "valid.jsonl"),
            "format": "dolly",
            "max_validation": 8,  # with so few steps there is no checkpoint to choose
        },
        "teacher": options.teacher,
        "evaluation": {"max_examples": 2, "generate_examples": 2, "max_new_tokens": 8},  # measured below instead
    }
    warm = run_once("recipes-warm-up", "kd", budget={"steps": WARM_UP_STEPS}, **common)
    teacher = load(options.teacher)
    heldout = recipe.Data(
        path=str(options.data / "valid.jsonl"), format="dolly", max_prompt_tokens=2 * TOKENS, max_response_tokens=TOKENS
    )
    rows = prepare_all(heldout, teacher.tokenizer)
    eos = teacher.tokenizer.eos_token_id
    family = Causal(teacher.model.float())
    before = student_of(warm.student)
    bench = Bench(
        Remembering(LocalTeacher(family)), rows[: options.examples], Decoding(TOKENS, frozenset({eos})), eos, before
    )
    student = {"kind": "pretrained", "model": str(warm.student), "freeze_embeddings": True}  # frozen as in the warm-up
    settings = common | {"student": student, "budget": {"steps": STEPS}}
    lines = []
    for method in options.methods:
        lines.append(line_of(method, bench, settings))
        print(lines[-1], file=sys.stderr, flush=True)
    if options.methods == COMPARED:
        write_table(lines, options)


def line_of(method: str, bench: Bench, settings: dict[str, Any]) -> str:
    """A row of the table."""
    run = run_once(f"recipes-{method}", method, **settings)
    by = yardstick(recipe_io.load(run.recipe_file, methods=METHODS))
    measured = run.path / "before_after.json"
    if not measured.exists():
        first, then = bench.values(by, bench.before), bench.values(by, student_of(run.student))
        write_text(measured, json.dumps({"before": first.tolist(), "after": then.tolist()}))
    values = {
        name: torch.tensor(found, dtype=torch.float64) for name, found in json.loads(measured.read_text()).items()
    }
    change = values["after"] - values["before"]
    low, high = interval(change)
    first, then = values["before"].mean(), values["after"].mean()
    means = f"{first:.4f} | {then:.4f} | {change.mean():+.4f} ({low:+.4f} to {high:+.4f})"
    return f"| [{method}]({method}.md) | {by.name} | {means} | {run.read('cost')['training_s']:.0f} |"


def write_table(lines: Sequence[str], options: argparse.Namespace) -> None:
    """Put the table between the page's two marks."""
    head = (
        f"{options.examples} held-out prompts of Dolly, responses cut at {TOKENS} tokens, "
        f"{STEPS} steps each from a student of {WARM_UP_STEPS} steps of "
        f"`kd`; torch {torch.__version__.split('+')[0]}, one seed.\n\n"
        "| recipe | its divergence | before | after | change, with 95% interval | training, s |\n"
        "|---|---|---|---|---|---|\n"
    )
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    write_text(PAGE, page[:start] + "\n" + head + "\n".join(lines) + "\n" + page[end:])


if __name__ == "__main__":
    main()
