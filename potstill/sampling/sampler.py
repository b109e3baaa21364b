"""One batched sampler: a few slots, which prompts enter as responses finish.

A row's response depends on its prompt, its seed and the models, and on nothing else: not on its neighbours, its slot or
the number of slots (exactly in float64; in lower precision as far as a model's logits do not depend on its batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.models.decoding import Decoder
from potstill.sampling.distributions import Decoding, warped
from potstill.sampling.policies import Policy


@dataclass(frozen=True)
class Response:
    """What was written to one prompt.

    ``behaviour_logprobs`` are what the policy gave each token; ``student_logprobs`` what the first model gave it, after
    the same warping. ``finished``: it ends in a stop token, and was not cut. ``num_corrected``: tokens that the teacher
    put in the place of the student's.
    """

    ids: tuple[int, ...]
    behaviour_logprobs: tuple[float, ...]
    student_logprobs: tuple[float, ...]
    finished: bool
    num_corrected: int = 0

    @property
    def importance_weights(self) -> tuple[float, ...]:
        """The first model's probability of each token over the policy's: 1 where it wrote alone."""
        pairs = zip(self.student_logprobs, self.behaviour_logprobs, strict=True)
        return tuple(float(torch.tensor(own - behaviour, dtype=torch.float64).exp()) for own, behaviour in pairs)


@dataclass
class _Row:
    """A response in the making."""

    index: int
    sequence: list[int]  # prompt and response
    prompt_length: int
    uniforms: Float[Tensor, "tokens two"]
    limit: int
    behaviour: list[float] = field(default_factory=list)
    student: list[float] = field(default_factory=list)
    num_corrected: int = 0

    @property
    def length(self) -> int:
        return len(self.sequence) - self.prompt_length


@torch.no_grad()
def sample(
    policy: Policy,
    decoders: Sequence[Decoder],
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    seeds: Sequence[int],
    slots: int,
    limits: Sequence[int] | None = None,
) -> list[Response]:
    """One response to each prompt, in the prompts' order.

    Args:
        policy: who writes.
        decoders: its models, empty: the student first where there are two.
        prompts: token ids, at least one each.
        decoding: how tokens are chosen; applied to each model before the policy mixes them.
        seeds: one for each prompt.
        slots: responses at a time, as many as the decoders were made for.
        limits: of each response's tokens, below ``decoding.max_new_tokens``; that for all where None.
    Raises: ValueError where decoders or seeds do not fit.
    """
    if len(decoders) != policy.num_models or len(seeds) != len(prompts):
        raise ValueError(
            f"{len(decoders)} decoders for {policy.num_models} models, {len(seeds)} seeds for {len(prompts)}"
        )
    most = limits or [decoding.max_new_tokens] * len(prompts)
    rows = zip(range(len(prompts)), prompts, seeds, most, strict=True)
    waiting = [_row(*row) for row in rows][::-1]
    active: list[_Row] = []
    logits: list[Tensor] = []  # of each model, for the active rows
    done: dict[int, Response] = {}
    while waiting or active:
        entering = [waiting.pop() for _ in range(min(slots - len(active), len(waiting)))]
        if entering:
            fresh = [decoder.admit([row.sequence for row in entering]) for decoder in decoders]
            logits = [torch.cat(pair) for pair in zip(logits, fresh, strict=True)] if active else fresh
            active += entering
        tokens = _choose(policy, decoders, logits, active, decoding)
        tokens = _release(active, tokens, decoders, decoding, done)
        if active:
            logits = [decoder.step(tokens) for decoder in decoders]
    return [done[index] for index in range(len(prompts))]


def _row(index: int, prompt: Sequence[int], seed: int, limit: int) -> _Row:
    generator = torch.Generator().manual_seed(seed)
    return _Row(index, list(prompt), len(prompt), torch.rand(limit, 2, generator=generator, dtype=torch.float64), limit)


def _choose(
    policy: Policy, decoders: Sequence[Decoder], logits: Sequence[Tensor], active: Sequence[_Row], decoding: Decoding
) -> Tensor:
    """Choose every row's next token, and note it with its log-probabilities."""
    if size := decoding.no_repeat_ngram:
        pairs = zip(decoders, logits, strict=True)
        logits = [_without_repeats(part, _written(active, decoder), size) for decoder, part in pairs]
    log_probs = tuple(warped(part, decoding) for part in logits)
    uniforms = torch.stack([row.uniforms[row.length] for row in active]).to(logits[0].device)
    choice = policy.choose(log_probs, uniforms)
    student = log_probs[0].gather(-1, choice.tokens[:, None])[:, 0]
    figures = zip(active, *(part.tolist() for part in (*choice, student)), strict=True)
    for row, token, behaviour_logprob, corrected, student_logprob in figures:
        row.sequence.append(token)
        row.behaviour.append(behaviour_logprob)
        row.num_corrected += corrected
        row.student.append(student_logprob)
    return choice.tokens


def _release(
    active: list[_Row], tokens: Tensor, decoders: Sequence[Decoder], decoding: Decoding, done: dict[int, Response]
) -> Tensor:
    """Let finished rows go, each place taken by the last row; the tokens of those that stay, in their new order."""
    places = list(range(len(active)))
    for place in reversed(range(len(active))):
        row = active[place]
        finished = row.sequence[-1] in decoding.stop_ids
        if not finished and row.length < row.limit:
            continue
        ids = tuple(row.sequence[row.prompt_length :])
        done[row.index] = Response(ids, tuple(row.behaviour), tuple(row.student), finished, row.num_corrected)
        for decoder in decoders:
            decoder.leave(place)
        for rows in (active, places):
            last = rows.pop()
            if place < len(rows):
                rows[place] = last  # type: ignore[assignment]
    return tokens[torch.tensor(places, dtype=torch.long, device=tokens.device)]


def _written(active: Sequence[_Row], decoder: Decoder) -> list[list[int]]:
    """What no n-gram may be repeated of: each row's sequence as this model has it, prompt or start token included."""
    start = decoder.start
    return [row.sequence if start is None else [start, *row.sequence[row.prompt_length :]] for row in active]


def _without_repeats(logits: Tensor, sequences: Sequence[list[int]], size: int) -> Tensor:
    """Logits with -inf at each token that would complete ``size`` tokens that stood in a sequence before."""
    banned = torch.zeros_like(logits, dtype=torch.bool)
    for place, sequence in enumerate(sequences):
        tail = sequence[max(0, len(sequence) - size + 1) :]
        for at in range(len(sequence) - size + 1):
            if sequence[at : at + size - 1] == tail:
                banned[place, sequence[at + size - 1]] = True
    return logits.masked_fill(banned, -torch.inf)
