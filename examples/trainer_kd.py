"""potstill's objectives inside transformers.Trainer: a loss of three steps and nothing else of potstill.

    python examples/trainer_kd.py --teacher FOLDER --student FOLDER --data rows.jsonl --output FOLDER

Both models share a vocabulary. Rows are {"prompt", "response"} without a chat template. Needs accelerate.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from potstill import objectives

# --8<-- the block of docs/how-to/own-trainer.md
Objective = Callable[..., torch.Tensor]


class DistillationTrainer(Trainer):
    loss_is_scaled_for_ga = True  # compute_loss divides by the tokens of all micro-batches itself

    def __init__(self, *args: Any, teacher: Module, objective: Objective = objectives.forward_kl, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # whatever the student takes: count num_items_in_batch
        self.teacher = teacher.to(self.args.device).eval().requires_grad_(False)
        self.objective: Objective = objective

    def compute_loss(
        self, model: Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"]
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**inputs)
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        # The logits at a position are for the next token, and padding and prompt (-100) are nobody's next token.
        scored = labels[:, 1:] != -100
        at_tokens = self.objective(outputs.logits[:, :-1][scored], teacher_logits[:, :-1][scored])
        loss = at_tokens.sum() / (scored.sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the tokens of all processes, whose gradients are averaged
        return (loss, outputs) if return_outputs else loss


# --8<-- end of the block


def read(file: Path, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Token ids, and labels that leave out the prompt and the first token, which nothing predicts."""
    examples = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"]).input_ids
        ids = [*tokenizer(row["prompt"] + row["response"]).input_ids, tokenizer.eos_token_id]
        start = max(len(prompt), 1)
        examples.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return examples


def collate(examples: list[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Padded on the right; the mask comes from lengths, because the pad id may be a real token's too."""

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": pad(ids, pad_id),
        "attention_mask": pad([[1] * len(row) for row in ids], 0),
        "labels": pad([example["labels"] for example in examples], -100),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for folder in ("teacher", "student", "output"):
        parser.add_argument(f"--{folder}", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--objective", default="forward_kl", help="any that compares with a teacher")
    parser.add_argument("--settings", type=json.loads, default={}, help="""of the objective: '{"temperature": 2.0}'""")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=4, help="examples a micro-batch")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches an update")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.student)
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    trainer = DistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.student, dtype=torch.float32),
        teacher=AutoModelForCausalLM.from_pretrained(args.teacher),
        objective=partial(getattr(objectives, args.objective), **args.settings),
        args=TrainingArguments(
            output_dir=args.output, max_steps=args.steps, learning_rate=args.learning_rate,
            per_device_train_batch_size=args.batch, gradient_accumulation_steps=args.accumulate,
            logging_steps=1, save_strategy="no", report_to="none",
        ),
        train_dataset=read(args.data, tokenizer),
        data_collator=partial(collate, pad_id=pad_id),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()  # the student and its tokenizer; the teacher is no part of it
    trainer.save_state()  # the losses, in trainer_state.json


if __name__ == "__main__":
    main()
