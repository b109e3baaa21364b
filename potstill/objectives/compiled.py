"""A block of positions as one function that a compiler has made: its terms' values, and the gradient of its logits.

Autograd goes over a block's vocabulary a dozen times, once for each of torch's own functions. Inductor, which writes
C++ for a processor and Triton for a GPU, does the same in three or four, in half the time on a processor with AVX512
(decision 48). It adds up in another order: what it finds differs from autograd's by rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from potstill.types import Sampled, TeacherLogits, TopK

DRAWS = 64  # tokens drawn at a position are filled up to a multiple of it, that they may be of one kind mostly
READS = ("teacher", "tokens", "student")  # what a term may look at: one position, and nothing beside the logits there

InOne = Callable[..., tuple[Tensor, ...]]


class Term(Protocol):
    """What is asked of a ``BoundTerm``."""

    @property
    def objective(self) -> Callable[..., Tensor]: ...
    @property
    def reads(self) -> str: ...
    @property
    def coefficient(self) -> float: ...


@dataclass(frozen=True)
class Block:
    """Positions that all of some terms count. ``scales`` and ``settings`` are each term's own."""

    logits: Float[Tensor, "pos vocab"]
    teacher: TeacherLogits | None
    target_ids: Tensor
    scales: Sequence[Float[Tensor, " pos"]]
    settings: Sequence[dict[str, Tensor]]


class Compiled:
    """Functions of the blocks of a stream, each made when a block of its kind first comes.

    ``num_taken`` blocks were theirs; ``left``: of what is left as it is, why.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, InOne | None] = {}
        self.num_taken = 0
        self.left: list[str] = []

    def __call__(self, terms: Sequence[Term], block: Block) -> Float[Tensor, " terms"] | None:
        """The terms' values, and the gradient of their total written over the logits; None where that is left to the
        caller, and nothing is changed."""
        block = _filled_up(block)
        tensors = _tensors(terms, block)
        kind = _kind(terms, block, tensors)
        if kind is None or _names_others(block):
            return None
        if kind not in self._made:
            self._made[kind] = self._make(terms, block, tensors)
        made = self._made[kind]
        if made is None:
            return None
        self.num_taken += 1
        return made(*tensors)[0]

    def _make(self, terms: Sequence[Term], block: Block, tensors: Sequence[Tensor]) -> InOne | None:
        from torch._inductor import compile as written  # slow to import, and seldom wanted
        from torch.fx.experimental.proxy_tensor import make_fx

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what torch makes of itself
                graph = make_fx(partial(_in_one, terms, block), tracing_mode="fake")(*tensors)
                # In this process: the pool that torch would start stays behind it when it is killed.
                found: InOne = written(graph, list(tensors), options={"compile_threads": 1})
        except Exception as error:  # no compiler, or something that none can follow: autograd does without
            self.left.append((str(error).strip().splitlines() or [type(error).__name__])[0][:200])
            return None
        return found


def _in_one(terms: Sequence[Term], block: Block, *tensors: Tensor) -> tuple[Tensor]:
    """What a block is compiled to. ``block`` says how the tensors belong together, and nothing of what they hold."""
    rest = iter(tensors)
    logits, coefficients, target_ids = next(rest), next(rest), next(rest)
    scales = [next(rest) for _ in terms]
    settings = [{name: next(rest) for name in own} for own in block.settings]
    teacher = _with_tensors(block.teacher, list(rest))
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        values = [
            (term.objective(*_arguments(term, leaf, teacher, target_ids), **own) * scale).sum()
            for term, scale, own in zip(terms, scales, settings, strict=True)
        ]
        found = torch.stack(values)
        logits.copy_(torch.autograd.grad((found * coefficients).sum(), leaf)[0])
    return (found.detach(),)


def _arguments(
    term: Term, logits: Tensor, teacher: TeacherLogits | None, target_ids: Tensor
) -> tuple[Tensor | TeacherLogits | None, ...]:
    beside = {"teacher": (teacher,), "tokens": (target_ids,), "student": ()}
    return logits, *beside[term.reads]


def _tensors(terms: Sequence[Term], block: Block) -> list[Tensor]:
    precise = torch.float64 if block.logits.dtype == torch.float64 else torch.float32
    coefficients = torch.tensor([term.coefficient for term in terms], dtype=precise, device=block.logits.device)
    settings = [value for own in block.settings for value in own.values()]
    return [block.logits, coefficients, block.target_ids, *block.scales, *settings, *_tensors_of(block.teacher)]


def _tensors_of(teacher: TeacherLogits | None) -> list[Tensor]:
    if teacher is None or isinstance(teacher, Tensor):
        return [] if teacher is None else [teacher]
    return [getattr(teacher, name) for name in _names(teacher)]


def _with_tensors(teacher: TeacherLogits | None, tensors: Sequence[Tensor]) -> TeacherLogits | None:
    """A teacher of the same kind that says something else."""
    if teacher is None or isinstance(teacher, Tensor):
        return tensors[0] if tensors else None
    said: dict[str, Any] = dict(zip(_names(teacher), tensors, strict=True))
    return replace(teacher, **said)


def _names(teacher: TopK | Sampled) -> list[str]:
    return [field.name for field in fields(teacher) if field.name != "temperature"]


def _names_others(block: Block) -> bool:
    """Whether ids are beyond the vocabulary. Autograd's functions say which; a compiled one ends the process."""
    ids = [block.target_ids, *([] if isinstance(block.teacher, Tensor | None) else [block.teacher.ids])]
    if block.logits.device.type != "cpu":  # to look would mean waiting, and there an assertion of the device's says so
        return False
    return any(part.numel() and not 0 <= int(part.min()) <= int(part.max()) < block.logits.shape[-1] for part in ids)


def _filled_up(block: Block) -> Block:
    """Tokens that were drawn, up to a multiple of ``DRAWS`` at each position; those that fill up have no weight."""
    if not isinstance(block.teacher, Sampled):
        return block
    fill = -block.teacher.ids.shape[-1] % DRAWS
    drawn = [F.pad(tensor, (0, fill)) for tensor in _tensors_of(block.teacher)] if fill else None
    return replace(block, teacher=_with_tensors(block.teacher, drawn)) if drawn else block


def _kind(terms: Sequence[Term], block: Block, tensors: Sequence[Tensor]) -> Hashable | None:
    """What blocks have in common that one function can do; None of what is not to be compiled."""
    if any(term.reads not in READS for term in terms):
        return None
    asked = tuple((*_said(term.objective), term.reads) for term in terms)
    shapes = tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors)
    names = tuple(tuple(own) for own in block.settings)
    kind = asked, names, type(block.teacher), getattr(block.teacher, "temperature", None), shapes
    try:
        hash(kind)
    except TypeError:  # an objective with settings that are no numbers
        return None
    return kind


def _said(objective: Callable[..., Any]) -> tuple[Hashable, ...]:
    """An objective, by its function and what it is to be called with."""
    if isinstance(objective, partial):
        return objective.func, objective.args, tuple(sorted(objective.keywords.items()))
    return (objective, (), ())
