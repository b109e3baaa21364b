"""A term on what is inside both models: its pairs of places, and how their channels are brought together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from potstill.objectives.features import relation_heads
from potstill.types import Inside, Tap

# An objective on two states [batch, response, channel], and the mask of the tokens it is about.
Compare = Callable[[Tensor, Tensor, Tensor], Tensor]


class ChannelMap(Protocol):
    """Brings the states of both models to one width."""

    def student(self, hidden: Tensor) -> Tensor: ...
    def teacher(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Pair:
    """A place in the student, and the teacher's that it is compared with."""

    student: Tap
    teacher: Tap


class Match(nn.Module):
    """Pairs of places and the maps of their channels; some maps learn, with the student, and are dropped with the term.

    ``value`` is the mean over pairs of sum(scale x objective), the term's share of a micro-batch.
    """

    def __init__(self, pairs: Sequence[Pair], maps: Sequence[nn.Module], compare: str, heads: int = 1):
        """
        Args:
            pairs: the places. maps: a ``ChannelMap`` for each.
            compare: how the objective sees them: "tokens", one by one; "batch", all at once; "relations", between the
                tokens of a response. heads: of relations.
        """
        super().__init__()
        self.pairs = tuple(pairs)
        self.maps = nn.ModuleList(maps)
        self._compare = {"tokens": _by_token, "batch": _at_once, "relations": _related}[compare]
        self._heads = heads

    @property
    def student_taps(self) -> tuple[Tap, ...]:
        return tuple(pair.student for pair in self.pairs)

    @property
    def teacher_taps(self) -> tuple[Tap, ...]:
        return tuple(pair.teacher for pair in self.pairs)

    def value(
        self,
        objective: Callable[..., Tensor],
        student: Inside,
        teacher: Inside,
        scale: Float[Tensor, "batch response"],
        mask: Bool[Tensor, "batch response"],
    ) -> Float[Tensor, ""]:
        """The term's share of one micro-batch.

        Args:
            objective: a function of ``potstill.objectives.features``, with its settings.
            student, teacher: what is inside them.
            scale: weight / denominator of each position; 0 leaves it out.
            mask: the response's real tokens.
        """
        total = scale.new_zeros(())
        if not bool((scale != 0).any()):
            return total
        for pair, channels in zip(self.pairs, self.maps, strict=True):
            ours, theirs = channels.student(student[pair.student]), channels.teacher(teacher[pair.teacher])  # type: ignore[operator]
            total = total + self._compare(objective, ours, theirs, scale, mask, self._heads)
        return total / len(self.pairs)


def _by_token(
    objective: Callable[..., Tensor], ours: Tensor, theirs: Tensor, scale: Tensor, _mask: Tensor, _heads: int
) -> Float[Tensor, ""]:
    counted = scale != 0
    return (objective(ours[counted], theirs[counted]) * scale[counted]).sum()


def _at_once(
    objective: Callable[..., Tensor], ours: Tensor, theirs: Tensor, scale: Tensor, _mask: Tensor, _heads: int
) -> Float[Tensor, ""]:
    """One figure for all tokens, as large a share of the global mean as the micro-batch has of all weight."""
    counted = scale != 0
    if int(counted.sum()) < 2:  # one token correlates with nothing
        return ours.sum() * 0
    return objective(ours, theirs, counted) * scale.sum()


def _related(
    objective: Callable[..., Tensor], ours: Tensor, theirs: Tensor, scale: Tensor, mask: Tensor, heads: int
) -> Float[Tensor, ""]:
    found = objective(relation_heads(ours, heads), relation_heads(theirs, heads), mask)
    counted = scale != 0
    return (found.mean(1)[counted] * scale[counted]).sum()


class AsTheyAre(nn.Module):
    """No map: relations have no channels."""

    def student(self, hidden: Tensor) -> Tensor:
        return hidden

    def teacher(self, hidden: Tensor) -> Tensor:
        return hidden


def parameters_of(matches: Sequence[Match]) -> list[nn.Parameter]:
    """Of all maps that learn, in order."""
    return [parameter for match in matches for parameter in match.parameters()]


def shared_heads(widths: Sequence[int], most: int) -> int:
    """The most relation heads, ``most`` at most, into which every one of these widths divides."""
    return next(heads for heads in range(most, 0, -1) if not any(width % heads for width in widths))


def drawn_channels(seed: int, count: int, of: int) -> list[int]:
    """``count`` channels of ``of``, drawn without regard to anything, rising."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count].sort().values.tolist()
