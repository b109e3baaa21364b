"""The cost of a divergence from hidden states to gradients: potstill against full logits and against TRL.

    python bench/loss_head.py                                    three comparisons, about twenty minutes
    python bench/loss_head.py --vocab 49152 --hidden 576 --positions 2048 --objective jensen_shannon

Both models' heads, the divergence, and the gradients of the student's states and head. One thread; processor seconds,
the subjects in turns in one process, medians; extra memory in a process of its own for each subject, over what the
inputs take. Before anything is timed all subjects must agree on the loss and on both gradients. ``full`` materialises
the logits: for forward KL with torch's kl_div, for Jensen-Shannon with the function of TRL's GKDTrainer. TRL is
optional (``pip install trl==1.16.0``); without it its subjects are left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill import objectives
from potstill.objectives.chunked import BoundTerm, evaluate_terms
from potstill.types import Batch, Head, Live, StudentOutput

try:
    from trl.experimental.gkd import GKDTrainer
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
except ImportError:
    GKDTrainer = None

SHAPES = [(49_152, 576, 2048, "forward_kl"), (49_152, 576, 2048, "jensen_shannon"), (151_936, 1024, 2048, "forward_kl")]
BETA = {"forward_kl": 0.0, "jensen_shannon": 0.5}  # TRL's name for the divergence


class Inputs:
    """States and heads of a student and a teacher that disagree about as much as real ones do early on."""

    def __init__(self, vocab: int, hidden: int, positions: int):
        torch.manual_seed(0)
        self.weight = (torch.randn(vocab, hidden) * 0.05).requires_grad_()
        self.teacher_weight = torch.randn(vocab, hidden) * 0.05
        self.states = torch.randn(positions, hidden).requires_grad_()
        self.teacher_states = torch.randn(positions, hidden)


def ours(inputs: Inputs, objective: str) -> Tensor:
    vocab, positions = inputs.weight.shape[0], inputs.states.shape[0]
    mask = torch.ones(1, positions, dtype=torch.bool)
    ids = torch.zeros(1, positions, dtype=torch.long)
    batch = Batch(ids[:, :1], mask[:, :1], ids, mask, ("bench",))
    output = StudentOutput(inputs.states[None], Head(inputs.weight, None, None, vocab))
    signal = Live(inputs.teacher_states[None], Head(inputs.teacher_weight, None, None, vocab))
    term = BoundTerm(objective, getattr(objectives, objective), "teacher", 1.0, mask.float() / positions)
    return evaluate_terms(output, signal, batch, [term])[0]


def full(inputs: Inputs, objective: str) -> Tensor:
    student = F.linear(inputs.states, inputs.weight)
    with torch.no_grad():
        teacher = F.linear(inputs.teacher_states, inputs.teacher_weight)
    if objective == "jensen_shannon":
        return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=0.5, reduction="sum") / len(student)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="sum") / len(student)


def trl_chunked(inputs: Inputs, objective: str) -> Tensor:
    values, _ = ChunkedDivergenceFunction.apply(
        inputs.states, inputs.weight, None, inputs.teacher_states, inputs.teacher_weight, None, BETA[objective]
    )
    return values.mean()


def subjects(objective: str) -> dict[str, Callable[[Inputs, str], Tensor]]:
    found: dict[str, Callable[[Inputs, str], Tensor]] = {"potstill": ours}
    if objective == "forward_kl" or GKDTrainer:
        found["full"] = full
    if GKDTrainer:
        found["trl_chunked"] = trl_chunked
    return found


def once(subject: Callable[[Inputs, str], Tensor], inputs: Inputs, objective: str) -> tuple[float, float]:
    """Processor seconds of one forward and backward, and the loss."""
    inputs.weight.grad = inputs.states.grad = None
    begun = time.process_time()
    loss = subject(inputs, objective)
    loss.backward()
    return time.process_time() - begun, loss.item()


def check(inputs: Inputs, objective: str) -> None:
    """All subjects compute the same thing."""
    reference = None
    for name, subject in subjects(objective).items():
        _, loss = once(subject, inputs, objective)
        assert inputs.states.grad is not None
        assert inputs.weight.grad is not None
        found = loss, inputs.states.grad.clone(), inputs.weight.grad.clone()
        reference = reference or found
        assert abs(found[0] / reference[0] - 1) < 1e-4, (name, found[0], reference[0])
        for ours_, theirs in zip(reference[1:], found[1:], strict=True):
            assert (ours_ - theirs).norm() < 1e-3 * ours_.norm(), name


def seconds(inputs: Inputs, objective: str, repeats: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in subjects(objective)}
    for _ in range(repeats):
        for name, subject in subjects(objective).items():
            found[name].append(once(subject, inputs, objective)[0])
    return found


def resident_mib(field: str) -> float:
    """VmRSS now, or VmHWM, its peak since it was last reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def extra_memory(args: argparse.Namespace, subject: str) -> float:
    """MiB that a subject takes over its inputs, in a process of its own."""
    shape = ["--vocab", args.vocab, "--hidden", args.hidden, "--positions", args.positions]
    command = [sys.executable, __file__, *map(str, shape), "--objective", args.objective, "--memory-of", subject]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(args: argparse.Namespace) -> None:
    inputs = Inputs(args.vocab, args.hidden, args.positions)
    check(Inputs(args.vocab, args.hidden, min(args.positions, 128)), args.objective)
    times = seconds(inputs, args.objective, args.repeats)
    memory = {name: extra_memory(args, name) for name in times}
    print(f"\n{args.objective}, vocabulary {args.vocab:,}, hidden {args.hidden}, {args.positions} positions")
    for name, found in times.items():
        line = f"  {name:12s} {median(found):7.2f} s (best {min(found):.2f})  {memory[name]:7.0f} MiB extra"
        if name != "potstill":
            ratio = median(times["potstill"]) / median(found)
            line += f"   potstill: {ratio:.2f} x its time, {memory['potstill'] / memory[name]:.3f} x its memory"
        print(line, flush=True)
    shape = {key: getattr(args, key) for key in ("objective", "vocab", "hidden", "positions")}
    print(json.dumps(shape | {"seconds": times, "extra_mib": memory}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--objective", choices=sorted(BETA), default="forward_kl")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        inputs = Inputs(args.vocab, args.hidden, args.positions)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the imports is not ours
        before = resident_mib("VmRSS")
        once(subjects(args.objective)[args.memory_of], inputs, args.objective)
        print(resident_mib("VmHWM") - before)
        return
    if not GKDTrainer:
        print("TRL is not installed: its subjects are left out (pip install trl==1.16.0)")
    shapes = [(args.vocab, args.hidden, args.positions, args.objective)] if args.vocab else SHAPES
    for shape in shapes:
        args.vocab, args.hidden, args.positions, args.objective = shape
        report(args)


if __name__ == "__main__":
    main()
