"""Token by token: a model with a key/value cache of a few slots, which sequences enter and leave one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from potstill.errors import ModelError
from potstill.models.families import Causal
from potstill.models.products import head_logits, suited_products


class Decoder(Protocol):
    """One model at work on several sequences. Sequences are known by their place, 0 to the number of them - 1."""

    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "new vocab"]:
        """Take in sequences behind those that are there, and return the logits of their first tokens."""

    def step(self, tokens: Int[Tensor, " active"]) -> Float[Tensor, "active vocab"]:
        """Append a token to every sequence, and return the logits of the next."""

    def leave(self, place: int) -> None:
        """Let a sequence go; the last one takes its place."""


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, ``[slot, heads, token, dim]``: each sequence's own from column 0 on.

    ``begin`` says which slots the coming forward writes, and where.
    """

    def __init__(self, slots: int, capacity: int):
        super().__init__()
        self._slots, self._capacity = slots, capacity
        self._first, self._width = 0, 0
        self._at: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        heads = key_states.shape[1]
        self.keys = key_states.new_zeros(self._slots, heads, self._capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(self._slots, heads, self._capacity, value_states.shape[-1])
        self.is_initialized = True

    def begin(self, first: int, width: int, at: tuple[Tensor, Tensor] | None) -> None:
        """A token goes to each slot and column of ``at``; prompts, where it is None, into slots from ``first`` on."""
        self._first, self._width, self._at = first, width, at

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        count, _, length, _ = key_states.shape
        if self._at is None:
            rows = slice(self._first, self._first + count)
            self.keys[rows, :, :length], self.values[rows, :, :length] = key_states, value_states
            return key_states, value_states
        slots, columns = self._at
        self.keys[slots, :, columns] = key_states[:, :, 0]
        self.values[slots, :, columns] = value_states[:, :, 0]
        return self.keys[:count, :, : self._width], self.values[:count, :, : self._width]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence to another slot."""
        assert self.keys is not None
        assert self.values is not None
        for states in (self.keys, self.values):
            states[target, :, :length] = states[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0  # of a prompt, which is all that asks: single tokens bring their mask and positions

    def get_max_length(self) -> int:
        return self._capacity


class CausalDecoder:
    """A decoder-only model as a ``Decoder``.

    Args:
        family: the model; put it into evaluation mode first.
        slots: sequences at a time.
        capacity: tokens a sequence may have, prompt included.
    Raises: ModelError for a model whose attention does not see that far, or whose cache is of another kind.
    """

    def __init__(self, family: Causal, slots: int, capacity: int):
        config = family.model.config.get_text_config()
        check_window(config, capacity)
        self._family = family
        self._layers = [SlotLayer(slots, capacity) for _ in range(config.num_hidden_layers)]
        self._cache = Cache(layers=list(self._layers))
        self._lengths: list[int] = []

    @torch.no_grad()
    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "new vocab"]:
        """Prompts of any lengths; padding is on the right, where a causal model cannot look."""
        lengths = [len(prompt) for prompt in prompts]
        width, device = max(lengths), self._family.model.device
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=device)
        self._begin(len(self._lengths), width, None)
        hidden = self._hidden(ids, torch.arange(width, device=device).expand(len(prompts), -1), None)
        self._lengths += lengths
        last = torch.tensor(lengths, device=device) - 1
        return head_logits(self._family.head, hidden[torch.arange(len(prompts), device=device), last])

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " active"]) -> Float[Tensor, "active vocab"]:
        at = torch.tensor(self._lengths, device=tokens.device)
        width = max(self._lengths) + 1
        self._begin(0, width, (torch.arange(len(at), device=tokens.device), at))
        seen: Bool[Tensor, "active width"] = torch.arange(width, device=tokens.device) <= at[:, None]
        hidden = self._hidden(tokens[:, None], at[:, None], seen[:, None, None])
        self._lengths = [length + 1 for length in self._lengths]
        return head_logits(self._family.head, hidden[:, 0])

    def leave(self, place: int) -> None:
        last = len(self._lengths) - 1
        if place != last:
            for layer in self._layers:
                layer.move(last, place, self._lengths[last])
            self._lengths[place] = self._lengths[last]
        self._lengths.pop()

    def _begin(self, first: int, width: int, at: tuple[Tensor, Tensor] | None) -> None:
        for layer in self._layers:
            layer.begin(first, width, at)

    def _hidden(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        model = self._family.model
        with suited_products(model.get_input_embeddings().weight):
            return model.base_model(
                input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=self._cache, use_cache=True
            ).last_hidden_state


def check_window(config: Any, capacity: int) -> None:
    """Refuse more tokens than a model sees.

    Raises: ModelError.
    """
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and capacity > window:
        raise ModelError(
            f"its attention sees {window} tokens back, and prompt and response are up to {capacity}",
            "lower data.max_prompt_tokens, or max_new_tokens of the rollout or the evaluation",
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and capacity > limit:
        raise ModelError(
            f"the model has {limit} positions, and prompt and response are up to {capacity}",
            "lower data.max_prompt_tokens, or max_new_tokens of the rollout or the evaluation",
        )
