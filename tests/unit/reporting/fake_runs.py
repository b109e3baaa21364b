"""Run folders written by hand, as the other rooms write them: whole ones, and ones in which something is missing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from potstill.run import Run

RECIPE = """\
method: kd
run: null
seed: 1
baseline: equal_time_sft
stages:
- name: student
  teacher: {model: smollm2-135m-instruct, revision: null}
  student: {kind: pruned, model: null, keep_layers: 10, choose_by: block_influence, freeze_embeddings: true}
  data: {path: starter, heldout: null, format: prompt_response}
  streams:
  - name: data
    signal: logits
    terms:
    - objective: {name: forward_kl, temperature: 1.0}
      coefficient: 0.9
    - objective: {name: cross_entropy}
      coefficient: 0.1
  budget: {steps: 60}
  checkpoint: {every: 20, best_by: forward_kl_nats}
  evaluation: {max_examples: 128, generate_examples: 32, max_new_tokens: 96, sampling_temperature: 1.0, batch_size: 16}
"""


def figures(kl: float, agreement: float, perplexity: float, **others: Any) -> dict[str, Any]:
    """What the evaluator writes of one model."""
    return {
        "forward_kl_nats": kl,
        "forward_kl_nats_stderr": 0.02 * kl,
        "reverse_kl_nats": 0.9 * kl,
        "reverse_kl_nats_stderr": 0.02 * kl,
        "top1_agreement": agreement,
        "top1_agreement_stderr": 0.006,
        "acceptance_rate": 0.95 * agreement,
        "acceptance_rate_stderr": 0.005,
        "perplexity": perplexity,
        "perplexity_stderr": 0.02 * perplexity,
        "num_examples": 128,
        "num_tokens": 9123,
        "rouge_l": 18.42,
        "rouge_l_sampled": 14.9,
        "tokens_per_s": 431.2,
        "num_generated_examples": 32,
        "num_parameters": 63_600_000,
        "size_on_disk_bytes": 127_200_000,
    } | others


COMPARED = ("forward_kl", "reverse_kl", "top1", "acceptance", "perplexity", "num_examples", "num_tokens")
EVALUATIONS = {
    "teacher": figures(0.0, 1.0, 9.83, num_parameters=134_515_008, size_on_disk_bytes=269_060_552, tokens_per_s=160.9),
    "student_before": figures(7.913, 0.0312, 61_234.5, rouge_l=2.113),
    "student_after": figures(1.704, 0.4827, 41.27),
    "equal_time_sft": figures(2.31, 0.4402, 37.9),
}

DATA = {
    "format": "prompt_response",
    "files": {"train": {"file": "rows.jsonl", "sha256": "2a" * 32, "rows": 3000, "quarantined": 3}},
    "rows": 3000,
    "quarantined": 3,
    "used": 2981,
    "skipped_long_prompts": 16,
    "truncated_responses": 41,
    "truncated_share": 0.013754,
    "splits": {
        "train": {"rows": 2637, "used": 2621, "response_tokens": 191_022},
        "validation": {"rows": 64, "used": 64, "response_tokens": 4410},
        "heldout": {"rows": 296, "used": 296, "response_tokens": 21_002},
    },
    "overlap": {"duplicate_prompts": 2, "duplicate_rows": 0, "shared_8gram_response_share": 0.0405},
}

COST = {
    "training_s": 203.4,
    "evaluation_s": 88.1,
    "steps": 60,
    "best_step": 60,
    "response_tokens": 34_120,
    "peak_memory_bytes": 3_210_000_000,
    "baseline_training_s": 204.0,
    "baseline_steps": 131,
    "tokens_per_s": 167.7,
}

ENVIRONMENT = {"potstill": "0.1.0", "torch": "2.8.0", "python": "3.11.7", "device": "cpu", "threads": 2}
STUDENT = {
    "from": "smollm2-135m-instruct",
    "kept_layers": [0, 1, 2, 3, 5, 8, 13, 21, 28, 29],
    "of_layers": 30,
    "block_influence": [0.61, 0.3, 0.2],
}

PROMPTS = (
    "What is the difference between a pot still and a column still?",
    "Name three rivers in France.",
    "Write a short poem about copper.",
    "Why is the sky blue?",
)


def write_run(
    folder: Path, *, evaluations: dict[str, Any] = EVALUATIONS, recipe: str = RECIPE, curves: bool = False
) -> Run:
    """A finished run with its baseline; without curves, which take a second to draw, where they are not the point."""
    run = Run(folder)
    folder.mkdir(parents=True)
    run.recipe_file.write_text(recipe, encoding="utf-8")
    for name, content in {"data": DATA, "cost": COST, "env": ENVIRONMENT, "student": STUDENT}.items():
        run.write(name, content)
    for model, measured in evaluations.items():
        run.write(f"eval/{model}", measured)
    if curves:
        write_lines(run.metrics_file, training_lines(60, start=7.9, end=1.7) + validation_lines())
        write_lines(run.baseline.metrics_file, training_lines(131, start=9.0, end=3.5) + validation_lines(shift=0.5))
    write_lines(run.samples_file, [sample(index, prompt) for index, prompt in enumerate(PROMPTS)])
    return run


def write_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def training_lines(steps: int, *, start: float, end: float) -> list[dict[str, Any]]:
    """A loss that falls, with a wobble, as a run writes it."""
    lines = []
    for step in range(1, steps + 1):
        done = step / steps
        loss = end + (start - end) * math.exp(-5 * done) + 0.1 * math.sin(step)
        lines.append(
            {
                "step": step,
                "train/loss": loss,
                "train/data/forward_kl_nats": 0.9 * loss,
                "train/data/cross_entropy_nats": loss + 0.5,
                "optim/learning_rate": 1e-3 * math.sin(math.pi * done),
                "optim/grad_norm": None if step == 7 else 1.5 + math.cos(step),
                "data/response_tokens": 560 * step,
                "time/step_s": 3.4,
            }
        )
    return lines


def validation_lines(shift: float = 0.0) -> list[dict[str, Any]]:
    lines = []
    for step in (20, 40, 60):
        measured = figures(1.7 + 40 / step + shift, 0.5 - 4 / step - shift / 10, 40 + 2000 / step - 9 * shift)
        known = {key: value for key, value in measured.items() if key.startswith(COMPARED)}
        lines.append({"step": step} | {f"validation/{key}": value for key, value in known.items()})
    return lines


def sample(index: int, prompt: str) -> dict[str, Any]:
    """One prompt, and an answer of each model."""
    answers = {
        "teacher": "A pot still works in batches and keeps more of the wash's flavour; a column still runs "
        "continuously and gives a purer spirit.",
        "student_before": "the the of of , the",
        "student_after": "A pot still makes one batch at a time.\n\nA column still makes more at once.",
        "equal_time_sft": "A pot still is a still with a pot. A pot is a still.",
    }
    outputs = {model: {"greedy": text, "sampled": text[::-1]} for model, text in answers.items()}
    return {"id": f"rows.jsonl:{index}", "prompt": prompt, "reference": "In one, in batches.", "outputs": outputs}
