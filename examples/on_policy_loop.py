"""On-policy distillation in one flat file: the student writes, and learns from what the teacher says about it.

    python examples/on_policy_loop.py --teacher MODEL_FOLDER --student MODEL_FOLDER --data rows.jsonl

The student has to be able to write: a trained model, such as what examples/kd_loop.py or `potstill train kd` makes,
and not some layers that were just cut out. Each prompt is answered and trained on by itself, so there is no padding,
no mask and no cache of slots to think about: slow, and the same losses as potstill's own step on the same responses
(tests/e2e/test_on_policy_loop.py). Of the rows of {"prompt", "response"} only the prompts are used, without a chat
template; both models share a tokenizer.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", required=True)
parser.add_argument("--student", required=True)
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("--max-new-tokens", type=int, default=64)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--learning-rate", type=float, default=2e-4)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
parser.add_argument("--rollouts", type=Path, help="a file for every response that was written, a line each")
args = parser.parse_args()

# --- Prompts: without the 5% of rows that choose the best checkpoint in a real run ------------------------------------

tokenizer = AutoTokenizer.from_pretrained(args.student)
rows = [json.loads(line) for line in args.data.open(encoding="utf-8")]
by_hash = sorted(rows, key=lambda row: [hashlib.sha256(row[key].encode()).digest() for key in ("prompt", "response")])
validation = by_hash[: max(1, round(0.05 * len(rows)))]
prompts = [tokenizer(row["prompt"]).input_ids for row in rows if row not in validation]


def shuffled_forever() -> Iterator[list[int]]:
    """Every prompt once an epoch, in an order that depends on the seed and the epoch alone."""
    for epoch in itertools.count():
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(args.seed + epoch))
        yield from (prompts[index] for index in order.tolist())


# --- Models -----------------------------------------------------------------------------------------------------------

teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=getattr(torch, args.dtype)).eval()
student: Any = AutoModelForCausalLM.from_pretrained(args.student, dtype=getattr(torch, args.dtype))
# A model folder may ask for top_k 50, a nucleus or a penalty: text drawn like that is not the student's own.
end = tokenizer.eos_token_id
student.generation_config = GenerationConfig(
    do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=args.max_new_tokens,
    eos_token_id=end, pad_token_id=end,
)  # fmt: skip

parameters = list(student.parameters())
matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
optimizer = torch.optim.AdamW(
    [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
)


def learning_rate(progress: float, warmup: float = 0.05) -> float:
    """Linear from 0 over the warm-up, then a cosine to 0."""
    if progress < warmup:
        return args.learning_rate * progress / warmup
    return args.learning_rate * 0.5 * (1 - math.cos(math.pi * (1 - progress) / (1 - warmup)))


def write(prompt: list[int]) -> list[int]:
    """What the student of this moment answers, with the end token where it came to an end. No gradient flows."""
    ids = torch.tensor([prompt])
    return student.generate(ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist()


def response_log_probs(model: nn.Module, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log-probabilities of every token of the vocabulary at each response token: [response, vocab]."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)


# --- The loop: write, then reverse KL to the teacher at every token that was written, mean over the batch's tokens ----

torch.manual_seed(args.seed)
source, rollouts = shuffled_forever(), []
for step in range(args.steps):
    for group in optimizer.param_groups:
        group["lr"] = learning_rate((step + 0.5) / args.steps)
    student.eval()  # no dropout while writing
    batch = [(prompt, write(prompt)) for prompt in itertools.islice(source, args.batch)]
    student.train()
    num_tokens = sum(len(response) for _, response in batch)  # counted after writing: nobody knew before
    optimizer.zero_grad()
    loss = 0.0
    for prompt, response in batch:
        with torch.no_grad():
            log_p = response_log_probs(teacher, prompt, response)
        log_q = response_log_probs(student, prompt, response)
        # Over the whole vocabulary: the sampled token's log q - log p alone has a mean gradient of zero.
        reverse_kl = (log_q.exp() * (log_q - log_p)).sum() / num_tokens
        reverse_kl.backward()
        loss += reverse_kl.item()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    print(json.dumps({"step": step + 1, "loss": loss, "response_tokens": num_tokens}), flush=True)
    rollouts += [{"step": step + 1, "prompt_ids": p, "ids": r, "text": tokenizer.decode(r)} for p, r in batch]

if args.rollouts:
    args.rollouts.write_text("".join(json.dumps(line) + "\n" for line in rollouts))
