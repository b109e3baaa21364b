"""Word-level distillation in one flat file: what `potstill train kd` does, with nothing in between.

    python examples/kd_loop.py --teacher MODEL_FOLDER --data rows.jsonl --keep 0 1 8 9

Each example is run by itself, so there is no padding, no mask and no micro-batch to think about; potstill batches and
gives the same losses to 1e-9 in float64 (tests/e2e/test_kd_loop.py). For a LLaMA-shaped teacher and rows of
{"prompt", "response"} without a chat template.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", required=True)
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("--keep", type=int, nargs="+", required=True, help="the teacher's layers that the student gets")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
args = parser.parse_args()

# --- Data: prompt and response as token ids; the response ends in the end-of-sequence token ---------------------------

tokenizer = AutoTokenizer.from_pretrained(args.teacher)
rows = [json.loads(line) for line in args.data.open(encoding="utf-8")]

# The 5% of rows with the smallest hash choose the best checkpoint in a real run, so they are not trained on.
by_hash = sorted(rows, key=lambda row: [hashlib.sha256(row[key].encode()).digest() for key in ("prompt", "response")])
validation = by_hash[: max(1, round(0.05 * len(rows)))]
examples = []
for row in rows:
    if row not in validation:
        prompt = tokenizer(row["prompt"]).input_ids
        whole = tokenizer(row["prompt"] + row["response"]).input_ids
        examples.append((prompt, [*whole[len(prompt) :], tokenizer.eos_token_id]))


def shuffled_forever() -> Iterator[tuple[list[int], list[int]]]:
    """Every example once an epoch, in an order that depends on the seed and the epoch alone."""
    for epoch in itertools.count():
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(args.seed + epoch))
        yield from (examples[index] for index in order.tolist())


# --- Models: the student is some of the teacher's layers; the embedding stays the teacher's ---------------------------

teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=getattr(torch, args.dtype)).eval()
student = copy.deepcopy(teacher)
student.model.layers = nn.ModuleList(student.model.layers[index] for index in args.keep)
for embedding in (student.get_input_embeddings(), student.get_output_embeddings()):
    embedding.requires_grad_(False)
student.train()

trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
optimizer = torch.optim.AdamW(
    [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
)


def learning_rate(progress: float, warmup: float = 0.05) -> float:
    """Linear from 0 over the warm-up, then a cosine to 0."""
    if progress < warmup:
        return args.learning_rate * progress / warmup
    return args.learning_rate * 0.5 * (1 - math.cos(math.pi * (1 - progress) / (1 - warmup)))


def response_log_probs(model: nn.Module, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log p(. | everything before) at each response token: [response, vocab]."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)


# --- The loop: forward KL to the teacher at every response token, mean over the tokens of the batch -------------------

source = shuffled_forever()
for step in range(args.steps):
    for group in optimizer.param_groups:
        group["lr"] = learning_rate((step + 0.5) / args.steps)
    batch = [next(source) for _ in range(args.batch)]
    num_tokens = sum(len(response) for _, response in batch)
    optimizer.zero_grad()
    loss = 0.0
    for prompt, response in batch:
        with torch.no_grad():
            log_p = response_log_probs(teacher, prompt, response)
        log_q = response_log_probs(student, prompt, response)
        forward_kl = (log_p.exp() * (log_p - log_q)).sum() / num_tokens
        forward_kl.backward()
        loss += forward_kl.item()
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    print(json.dumps({"step": step + 1, "loss": loss}), flush=True)
