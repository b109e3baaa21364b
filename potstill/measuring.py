"""Measures one model on held-out rows, and writes down what was found: a row of the table, answers, the panel."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from potstill.bench import Bench, say
from potstill.data.examples import Tokenised
from potstill.errors import ModelError
from potstill.evaluation.evaluator import examine
from potstill.evaluation.exposure import Samples, draw_samples, panel, plain
from potstill.evaluation.generation import judge_answers
from potstill.models import adapters
from potstill.models.families import Family
from potstill.run import write_text
from potstill.sources.dataset import batches


def evaluate(bench: Bench, label: str, family: Family, size_on_disk: int) -> None:
    """Measure one model on the held-out rows: one row of the table, and what it is made of."""
    begun = time.perf_counter()
    settings = bench.recipe.stage.evaluation
    rows = bench.data.heldout[: settings.max_examples]
    say(f"measuring {label.replace('_', ' ')} on {len(rows)} held-out examples")
    with bench.runtime.autocast():
        measured = examine(family, bench.examiner, batches(rows, settings.batch_size, bench.tokenizer.eos_token_id))
        answered = rows[: settings.generate_examples]
        judged, answers, scores = judge_answers(
            family, bench.tokenizer, answered, settings, bench.recipe.seed, bench.recipe.stage.data.target
        )
        if "samples" not in settings.leave_out:
            _write_panel(bench, label, family, answered)
    size = {"num_parameters": adapters.num_parameters(family.model), "size_on_disk_bytes": size_on_disk}
    lines = _lines(rows, measured.of_each(), answers, scores)
    write_text(bench.run.rows_file(label), "".join(json.dumps(line) + "\n" for line in lines))
    bench.run.write(f"eval/{label}", measured.figures() | judged | size)
    cost = bench.run.read("cost")
    bench.run.write("cost", cost | {"evaluation_s": cost.get("evaluation_s", 0) + time.perf_counter() - begun})


def _lines(
    rows: Sequence[Tokenised],
    sums: Sequence[dict[str, float]],
    answers: Sequence[dict[str, str]],
    scores: Sequence[dict[str, float]],
) -> Iterator[dict[str, Any]]:
    """A line for each held-out row, laid out as those of a suite are; the first rows were answered as well."""
    for at, row in enumerate(rows):
        answered = at < len(answers)
        yield {
            "id": row.example_id,
            "input": row.prompt,
            "references": [row.response],
            "predictions": answers[at] if answered else {},
            "scores": sums[at] | (scores[at] if answered else {}),
        }


def _write_panel(bench: Bench, label: str, family: Family, answered: Sequence[Tokenised]) -> None:
    try:
        bench.run.write(f"panel/{label}", _panel(bench, family, answered))
    except ModelError as error:  # a window too short to sample in: the other figures stand
        say(f"no figures on its own samples: {error}")


def _panel(bench: Bench, family: Family, rows: Sequence[Tokenised]) -> dict[str, float]:
    """What one model is like on its own samples, beside the teacher's."""
    prompts = [row.prompt_ids for row in rows]
    teacher = bench.teaching.teacher if bench.teaching else None
    return panel(
        family,
        teacher,
        _teachers_samples(bench, prompts) if teacher else None,
        prompts,
        max_new_tokens=bench.recipe.stage.evaluation.max_new_tokens,
        stop_id=bench.tokenizer.eos_token_id,
        seed=bench.recipe.seed,
    )


def _teachers_samples(bench: Bench, prompts: Sequence[tuple[int, ...]]) -> Samples:
    """The teacher's responses: drawn once, and read again when a run goes on."""
    assert bench.teaching is not None
    kept = bench.run.read("panel/teacher_samples")
    if not kept:
        decoding = plain(bench.recipe.stage.evaluation.max_new_tokens, bench.tokenizer.eos_token_id)
        drawn = draw_samples(bench.teaching.teacher.family, prompts, decoding, seed=bench.recipe.seed)
        kept = {"responses": drawn.responses}
        bench.run.write("panel/teacher_samples", kept)
    return Samples(tuple(prompts), tuple(tuple(ids) for ids in kept["responses"]))
