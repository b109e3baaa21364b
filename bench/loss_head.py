"""B3: a divergence alone, from both models' states to the gradients of the student's states and head.

Against the four matrix products that no exact one can do without, full logits, and TRL's chunked divergence.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import measuring
from bench.measuring import Effort
from bench.results import Result
from potstill import objectives
from potstill.objectives.chunked import BoundTerm, evaluate_terms
from potstill.objectives.compiled import Compiled
from potstill.types import Batch, Head, Live, StudentOutput

OBJECTIVES = {"forward_kl": 0.0, "reverse_kl": 1.0, "jensen_shannon": 0.5}  # and TRL's name for each
FLOOR, IN_PLACE, FULL, TRL = "4 products", "4 products in place", "full logits", "TRL chunked"
AS_IT_COMES, LIGER = "potstill, not compiled", "Liger"
CPU = torch.device("cpu")
FEW_POSITIONS = 32  # more than a block has at any of the vocabularies
FLOOR_POSITIONS = 256  # in a product: enough for its best rate
OF_FLOOR, OVER_TRL = 1 / 1.25, 2.0


@cache
def maker(_vocab: int) -> Compiled:
    """What compiles for a vocabulary. It keeps what it has made."""
    return Compiled()


class Shape(NamedTuple):
    """``timed``, ``held``: positions, of time and memory. ``share``: what we may take of full logits' memory."""

    vocab: int
    hidden: int
    timed: int
    held: int
    share: float | None

    @property
    def name(self) -> str:
        return f"{self.vocab // 1000}k x {self.hidden}"


SHAPES = (
    Shape(32_000, 576, 1024, 2048, None),
    Shape(49_152, 576, 1024, 2048, 0.12),
    Shape(151_936, 1024, 512, 2048, 0.18),
)
QUICK = (Shape(4_000, 64, 256, 256, None),)


class Inputs:
    """States and heads of a student and a teacher that disagree about as much as real ones do early on."""

    def __init__(
        self,
        vocab: int,
        hidden: int,
        positions: int,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ):
        generator = torch.Generator(device).manual_seed(0)

        def drawn(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=device, generator=generator) * scale).to(dtype)

        self.weight = drawn(vocab, hidden, scale=0.05).requires_grad_()
        self.teacher_weight = drawn(vocab, hidden, scale=0.05)
        self.states = drawn(positions, hidden).requires_grad_()
        self.teacher_states = drawn(positions, hidden)

    def gradients_of(self, loss: Callable[[Inputs], Tensor]) -> float:
        """The loss, whose gradients are left in the states and the weight."""
        self.weight.grad = self.states.grad = None
        value = loss(self)
        value.backward()
        return value.item()


def measure(effort: Effort) -> list[Result]:
    """Time of each objective and shape against floor and peers; memory of forward KL."""
    found = []
    for shape in QUICK if effort.quick else SHAPES:
        found += _times(shape, effort.repeats)
        found += _memory(shape)
    return found


def _times(shape: Shape, repeats: int) -> list[Result]:
    check(shape)
    inputs = Inputs(shape.vocab, shape.hidden, shape.timed)
    turns: dict[str, Callable[[], object]] = {
        FLOOR: partial(four_products, inputs),
        IN_PLACE: partial(four_products, inputs, in_place=True),
    }
    for objective in OBJECTIVES:
        for name, loss in losses(objective).items():
            turns[f"{name} {objective}"] = partial(inputs.gradients_of, loss)
    seconds = measuring.in_turns(turns, repeats)
    results = []
    for objective in OBJECTIVES:
        case, ours = f"{objective}, {shape.name}, {shape.timed} positions", seconds[f"potstill {objective}"]
        results.append(Result("B3", case, "s", ours, FLOOR, seconds[FLOOR], "floor", OF_FLOOR))
        results.append(Result("B3", case, "s", ours, IN_PLACE, seconds[IN_PLACE], "floor"))
        others = [name for name in losses(objective) if name != "potstill"]
        targets = {TRL: OVER_TRL}
        results += [
            Result("B3", case, "s", ours, name, seconds[f"{name} {objective}"], target=targets.get(name))
            for name in others
        ]
    return results


def _memory(shape: Shape) -> list[Result]:
    sizes = {"vocab": shape.vocab, "hidden": shape.hidden, "positions": shape.held, "objective": "forward_kl"}
    peaks = {name: (measuring.extra_mib("bench.loss_head", name, **sizes),) for name in losses("forward_kl")}
    case = f"forward_kl, {shape.name}, {shape.held} positions"
    targets = {FULL: None if shape.share is None else 1 / shape.share}
    ours = peaks.pop("potstill")
    return [Result("B3", case, "MiB", ours, name, peak, target=targets.get(name)) for name, peak in peaks.items()]


def prepared(subject: str, vocab: int, hidden: int, positions: int, objective: str) -> Callable[[], float]:
    """What is measured in a process of its own: after a first call on few positions, which may have to compile."""
    Inputs(vocab, hidden, FEW_POSITIONS).gradients_of(losses(objective)[subject])
    return partial(Inputs(vocab, hidden, positions).gradients_of, losses(objective)[subject])


def check(shape: Shape, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> None:
    """All subjects have the same loss and the same gradients, but for Liger in bfloat16, which takes logarithms in it:
    what it then finds is told. Raises: RuntimeError."""
    inputs = Inputs(shape.vocab, shape.hidden, FEW_POSITIONS, device, dtype)
    value_within, gradient_within = (1e-4, 1e-3) if dtype == torch.float32 else (1e-2, 5e-2)
    for objective in OBJECTIVES:
        values, gradients = {}, {}
        for name, loss in losses(objective).items():
            values[name] = inputs.gradients_of(loss)
            assert inputs.states.grad is not None
            assert inputs.weight.grad is not None
            gradients[name] = torch.cat([inputs.states.grad.flatten(), inputs.weight.grad.flatten()])
        if dtype != torch.float32 and LIGER in values:
            print(f"{objective}: {LIGER} finds {values.pop(LIGER):.4g}, potstill {values['potstill']:.4g}")
            del gradients[LIGER]
        measuring.assert_equal(values, value_within)
        for name, gradient in gradients.items():
            if (gradient - gradients["potstill"]).norm() > gradient_within * gradient.norm():
                raise RuntimeError(f"the gradient of {name} for {objective} is another one")


# --- Subjects ---------------------------------------------------------------------------------------------------------


def losses(objective: str) -> Mapping[str, Callable[[Inputs], Tensor]]:
    """Each subject's loss, a mean over positions."""
    found = {
        "potstill": partial(ours, objective=objective, compiles=True),
        AS_IT_COMES: partial(ours, objective=objective),
        FULL: partial(full, objective=objective),
    }
    if _is_there("trl.kernels.chunked_divergence"):
        found[TRL] = partial(trl_chunked, objective=objective)
    if _is_there("liger_kernel.chunked_loss.jsd_loss"):
        found[LIGER] = partial(liger, objective=objective)
    return found


def four_products(inputs: Inputs, *, in_place: bool = False) -> None:
    """Both models' logits, and the gradients of states and weight, from logits that nothing else is done to.

    As torch makes them, each in new memory, which the system has to clear; ``in_place``: in the same memory each time.
    """
    with torch.no_grad():
        gradient = torch.zeros_like(inputs.weight)
        rooms = [torch.empty(FLOOR_POSITIONS, len(inputs.weight)) for _ in range(2)] if in_place else [None, None]
        for start in range(0, len(inputs.states), FLOOR_POSITIONS):
            at = slice(start, start + FLOOR_POSITIONS)
            logits = torch.mm(inputs.states[at], inputs.weight.T, out=rooms[0])
            reference = torch.mm(inputs.teacher_states[at], inputs.teacher_weight.T, out=rooms[1])
            logits @ inputs.weight
            gradient.addmm_(logits.T, inputs.states[at])
            del logits, reference


def ours(inputs: Inputs, objective: str, *, compiles: bool = False) -> Tensor:
    vocab, positions = inputs.weight.shape[0], inputs.states.shape[0]
    mask = torch.ones(1, positions, dtype=torch.bool, device=inputs.states.device)
    ids = mask.long()
    batch = Batch(ids[:, :1], mask[:, :1], ids, mask, ("bench",))
    output = StudentOutput(inputs.states[None], Head(inputs.weight, None, None, vocab))
    signal = Live(inputs.teacher_states[None], Head(inputs.teacher_weight, None, None, vocab))
    term = BoundTerm(objective, getattr(objectives, objective), "teacher", 1.0, mask.float() / positions)
    return evaluate_terms(output, signal, batch, [term], compiled=maker(vocab) if compiles else None)[0]


def full(inputs: Inputs, objective: str) -> Tensor:
    """As one writes it. Jensen-Shannon is as in TRL's GKDTrainer, in torch's own functions."""
    log_q = (inputs.states @ inputs.weight.T).float().log_softmax(-1)
    with torch.no_grad():
        log_p = (inputs.teacher_states @ inputs.teacher_weight.T).float().log_softmax(-1)
    kl = partial(F.kl_div, reduction="sum", log_target=True)
    if objective == "jensen_shannon":
        log_m = torch.logsumexp(torch.stack([log_q, log_p]) - math.log(2), 0)
        return (kl(log_m, log_p) + kl(log_m, log_q)) / 2 / len(log_q)
    return (kl(log_q, log_p) if objective == "forward_kl" else kl(log_p, log_q)) / len(log_q)


def trl_chunked(inputs: Inputs, objective: str) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    values, _ = ChunkedDivergenceFunction.apply(
        inputs.states, inputs.weight, None, inputs.teacher_states, inputs.teacher_weight, None, OBJECTIVES[objective]
    )
    return values.mean()


def liger(inputs: Inputs, objective: str) -> Tensor:
    """As it comes, but for compiling on a processor, which no run of it would be long enough for."""
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    compiled = inputs.states.device.type != "cpu"
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=OBJECTIVES[objective], compiled=compiled
    )
    labels = inputs.states.new_zeros(len(inputs.states), dtype=torch.long)
    value: Tensor = loss(inputs.states, inputs.weight, inputs.teacher_states, inputs.teacher_weight, labels)
    return value


def _is_there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
