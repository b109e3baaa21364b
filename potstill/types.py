"""The waist: what every family, teacher, source and objective agrees on. All of it is aligned to the response.

Axis words, everywhere: ``batch prompt response vocab topk hidden``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# The attribute that models set on a tokenizer of sources and targets, which are encoded apart, for data to read.
PAIR_MARK = "encodes_pairs"


@dataclass(frozen=True)
class Credit:
    """What a policy gradient has to know of sampled tokens. Constant, 0 at padding.

    ``behaviour_logprobs`` are those of the student that took part in sampling; ``advantages`` are larger for tokens
    that should become more likely.
    """

    behaviour_logprobs: Float[Tensor, "batch response"]
    advantages: Float[Tensor, "batch response"]


@dataclass(frozen=True)
class Batch:
    """Prompts and responses as token ids.

    Prompts are padded on the left and responses on the right, so position ``[:, 0]`` of the response follows the
    prompt in every row. The masks say which ids are real; they are made from lengths and never from the ids, so a
    pad id that equals the end-of-sequence id cannot hide a real token.

    Sampled responses bring ``importance_weights``, the student's probability of each token over that of whoever wrote
    it, and, where a policy gradient is taken, ``credit``. ``again`` says where its rows may come again: what a student
    has written is of no use to another run, and mostly of none to a later step.
    """

    prompt_ids: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    response_ids: Int[Tensor, "batch response"]
    response_mask: Bool[Tensor, "batch response"]
    example_ids: tuple[str, ...]
    importance_weights: Float[Tensor, "batch response"] | None = None
    credit: Credit | None = None
    again: Literal["anywhere", "in_this_run", "never"] = "anywhere"

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]

    @property
    def num_response_tokens(self) -> int:
        return int(self.response_mask.sum())

    @property
    def num_tokens(self) -> int:
        return int(self.prompt_mask.sum()) + self.num_response_tokens

    def to(self, device: torch.device) -> Batch:
        """The batch on a device: itself where it is there already."""
        if self.prompt_ids.device == device:
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in tensors.items()}
        credit = self.credit and Credit(*(value.to(device) for value in vars(self.credit).values()))
        return replace(self, credit=credit, **moved)


@dataclass(frozen=True)
class Head:
    """What turns the hidden state before a token into the logits of that token: a matrix, and what a family adds.

    ``transform`` is what the family does to each logit by itself (soft cap, scale). ``vocab_size`` cuts padded rows of
    the embedding, so that a student and a teacher of one tokenizer always meet at the same size.
    """

    weight: Float[Tensor, "rows hidden"]
    bias: Float[Tensor, " rows"] | None
    transform: Callable[[Float[Tensor, "*pos vocab"]], Float[Tensor, "*pos vocab"]] | None
    vocab_size: int

    def linear(
        self, hidden: Float[Tensor, "*pos hidden"], room: Float[Tensor, "most vocab"] | None = None
    ) -> Float[Tensor, "*pos vocab"]:
        """The logits before ``transform``. Where there is ``room`` enough they are constant, and written over it."""
        weight, bias = self.weight[: self.vocab_size], None if self.bias is None else self.bias[: self.vocab_size]
        if room is None or len(room) < len(hidden):
            return F.linear(hidden, weight, bias)
        return torch.mm(hidden, weight.T, out=room[: len(hidden)])

    def writes_over(self, hidden: Float[Tensor, "pos hidden"]) -> bool:
        """Whether the logits of these states can be written over others: they are one product, of one type."""
        narrowed = torch.is_autocast_enabled(hidden.device.type)
        return self.bias is None and hidden.dtype == self.weight.dtype and not narrowed

    def logits(self, linear: Float[Tensor, "*pos vocab"]) -> Float[Tensor, "*pos vocab"]:
        return linear if self.transform is None else self.transform(linear)

    def __call__(self, hidden: Float[Tensor, "*pos hidden"]) -> Float[Tensor, "*pos vocab"]:
        return self.logits(self.linear(hidden))

    def to(self, device: torch.device) -> Head:
        """The head on a device: the same tensors where they are there already."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)


@dataclass(frozen=True)
class StudentOutput:
    """Hidden states that predict each response token, and the head. Nobody has to hold ``[batch, response, vocab]``."""

    hidden: Float[Tensor, "batch response hidden"]
    head: Head


@dataclass(frozen=True)
class Tap:
    """A place inside a model: in which of its layers, from 0; of an encoder-decoder model, of its decoder.

    residual: what leaves the layer. mlp: the inner channels that its MLP's last matrix reads. queries, keys, values:
    of its attention, before positions are added.
    """

    layer: int
    place: Literal["residual", "mlp", "queries", "keys", "values"]


# What is at some places of a model, aligned to the response: a state stands where the token it predicts is.
Inside: TypeAlias = Mapping[Tap, Float[Tensor, "batch response channel"]]


@dataclass(frozen=True)
class Live:
    """Full logits of a teacher, as the hidden states that enter its head, and that head. Constant: no gradient.

    ``inside`` is what was asked for of its inner layers, of a whole batch: a part of the positions has none.
    """

    hidden: Float[Tensor, "*pos hidden"]
    head: Head
    inside: Inside = field(default_factory=dict)

    def __getitem__(self, at: Any) -> Live:
        return Live(self.hidden[at], self.head)


@dataclass(frozen=True)
class Dense:
    """Full logits of a teacher as they are. Constant: no gradient. ``Live`` is smaller and says the same."""

    logits: Float[Tensor, "*pos vocab"]

    def __getitem__(self, at: Any) -> Dense:
        return Dense(self.logits[at])


@dataclass(frozen=True)
class TopK:
    """Some tokens' log-probabilities under the teacher, and the mass of all the others. Constant: no gradient.

    Nothing is renormalised: exp(log_probs) and exp(log_tail_mass) add up to 1. The ids may be the teacher's most
    likely tokens or any other choice, the student's for instance; no id stands twice at one position.
    ``temperature`` is the one the log-probabilities were taken at: without the other logits there is no changing it.
    """

    ids: Int[Tensor, "*pos topk"]
    log_probs: Float[Tensor, "*pos topk"]
    log_tail_mass: Float[Tensor, "*pos"]
    temperature: float = 1.0

    def __getitem__(self, at: Any) -> TopK:
        return TopK(self.ids[at], self.log_probs[at], self.log_tail_mass[at], self.temperature)


@dataclass(frozen=True)
class Sampled:
    """Tokens drawn from the teacher, as weights whose expectation is its distribution (RS-KD). Constant: no gradient.

    ``weights`` are count / number of draws where the tokens were drawn from the teacher itself, and
    count * p / (draws * r) where they were drawn from r; tokens that pad a row have weight 0.
    """

    ids: Int[Tensor, "*pos draws"]
    weights: Float[Tensor, "*pos draws"]
    temperature: float = 1.0

    def __getitem__(self, at: Any) -> Sampled:
        return Sampled(self.ids[at], self.weights[at], self.temperature)


# What a teacher says about a batch, ``[batch, response]``; ``None`` is the signal of a stream without a teacher.
TeacherSignal: TypeAlias = Live | Dense | TopK | Sampled
# What a divergence takes for a teacher.
TeacherLogits: TypeAlias = Tensor | TopK | Sampled
