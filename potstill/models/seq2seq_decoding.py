"""Token by token from an encoder-decoder model: each row with its own source, and of its own age."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache

from potstill.errors import ModelError
from potstill.models.families import Family, start_token_of
from potstill.models.layout import DECODER, stacks_of
from potstill.models.products import Repeated, suited_products
from potstill.models.slots import EAGER, SlotLayer, distinct_of


class Seq2SeqDecoder:
    """An encoder-decoder model as a ``Decoder``. Prompts are encoded when they are admitted, by this model's encoder.

    Args:
        family: the model; put it into evaluation mode first.
        slots: sequences at a time.
        longest_prompt, max_new_tokens: tokens that a source and a target may have.
    Raises: ModelError for a decoder that cannot be told which position a token has, or names no start token.
    """

    start: int | None

    def __init__(self, family: Family, slots: int, longest_prompt: int, max_new_tokens: int):
        model = family.model
        self._family = family
        self.start = self._start = start_token_of(model)
        self._encoder, self._decoder = model.get_encoder(), model.get_decoder()
        self._positions, self._relative = _position_table(self._decoder), _relative_attention(self._decoder)
        count = len(stacks_of(model)[DECODER].layers)
        self._own = [SlotLayer(slots, max_new_tokens) for _ in range(count)]
        self._source = [SlotLayer(slots, longest_prompt) for _ in range(count)]
        self._cache = EncoderDecoderCache(Cache(layers=list(self._own)), Cache(layers=list(self._source)))
        self._products = Repeated(family)
        self._lengths: list[int] = []  # of the sources
        self._ages: list[int] = []  # tokens that the decoder has read, the start token among them

    @torch.no_grad()
    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "new vocab"]:
        """Prompts of any lengths, at least one token each. One that stands there several times is encoded once."""
        distinct, which = distinct_of(prompts)
        lengths = [len(prompt) for prompt in distinct]
        width, device = max(lengths), self._family.model.device
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in distinct], device=device)
        real = torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]
        for layer in [*self._own, *self._source]:
            layer.begin(len(self._ages), width, None)
        self._cache.is_updated = dict.fromkeys(range(len(self._source)), False)
        with suited_products(self._family.model.get_input_embeddings().weight):
            states = self._encoder(input_ids=ids, attention_mask=real).last_hidden_state
        self._lengths += [lengths[at] for at in which]
        self._ages += [1] * len(prompts)
        begin = torch.full((len(prompts), 1), self._start, device=device)
        return self._logits(begin, None, states[which], real[which])

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " active"]) -> Float[Tensor, "active vocab"]:
        device = tokens.device
        at, lengths = torch.tensor(self._ages, device=device), torch.tensor(self._lengths, device=device)
        width, source_width = max(self._ages) + 1, max(self._lengths)
        for own, source in zip(self._own, self._source, strict=True):
            own.begin(0, width, (torch.arange(len(at), device=device), at))
            source.show(len(at), source_width)
        self._cache.is_updated = dict.fromkeys(range(len(self._source)), True)
        real = torch.arange(source_width, device=device) < lengths[:, None]
        # Their keys and values are kept, so of the encoder's states only the shape is looked at.
        states = torch.zeros((), dtype=self._family.model.dtype, device=device).expand(len(at), source_width, 1)
        with _standing_at(self._positions, at):
            logits = self._logits(tokens[:, None], self._seen(at, width), states, real)
        self._ages = [age + 1 for age in self._ages]
        return logits

    def leave(self, place: int) -> None:
        last = len(self._ages) - 1
        if place != last:
            for own, source in zip(self._own, self._source, strict=True):
                own.move(last, place, self._ages[last])
                source.move(last, place, self._lengths[last])
            self._ages[place], self._lengths[place] = self._ages[last], self._lengths[last]
        self._ages.pop()
        self._lengths.pop()

    def _logits(
        self,
        ids: Int[Tensor, "row one"],
        mask: Tensor | None,
        states: Float[Tensor, "row source hidden"],
        real: Bool[Tensor, "row source"],
    ) -> Float[Tensor, "row vocab"]:
        with self._products.body():
            hidden = self._decoder(
                input_ids=ids,
                attention_mask=mask,
                encoder_hidden_states=states,
                encoder_attention_mask=real,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
        return self._products.head(hidden[:, 0])

    def _seen(self, at: Int[Tensor, " active"], width: int) -> Shaped[Tensor, "active heads 1 width"]:
        """What the token at column ``at`` of each row attends to.

        T5 takes every single token for the first one, and then its bias is the same for all keys, which softmax does
        not notice; the bias of the row's true distances comes with the mask.
        """
        dtype = self._family.model.dtype
        columns = torch.arange(width, device=at.device)
        seen = (columns <= at[:, None])[:, None, None]
        if self._relative is None and self._decoder.config._attn_implementation != EAGER:
            return seen
        bias = (
            seen.new_zeros((), dtype=dtype) if self._relative is None else _bias(self._relative, columns - at[:, None])
        )
        return torch.where(seen, bias.to(dtype), torch.finfo(dtype).min)


def _bias(attention: Any, distances: Int[Tensor, "active width"]) -> Float[Tensor, "active heads 1 width"]:
    """T5's relative bias at distances of key minus query."""
    buckets = attention._relative_position_bucket(
        distances,
        bidirectional=False,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    bias: Tensor = attention.relative_attention_bias(buckets)
    return bias.permute(0, 2, 1)[:, :, None]


def _relative_attention(decoder: nn.Module) -> nn.Module | None:
    """The layer that holds a decoder's relative bias, which all its layers share; None where it has none."""
    return next((module for module in decoder.modules() if hasattr(module, "relative_attention_bias")), None)


def _position_table(decoder: nn.Module) -> nn.Module | None:
    """What embeds a decoder's positions; None where nothing does. Raises: ModelError for one that we cannot ask."""
    table: nn.Module | None = getattr(decoder, "embed_positions", None)
    if table is not None and "position_ids" not in inspect.signature(table.forward).parameters:
        raise ModelError(
            f"{type(table).__name__} cannot be told the positions of its tokens, so rows of different ages cannot be "
            "written together",
            "use a T5, BART, mBART, Pegasus or Marian",
        )
    return table


@contextmanager
def _standing_at(table: nn.Module | None, at: Int[Tensor, " active"]) -> Iterator[None]:
    """Inside it, the one token of each row has the position of its row: a decoder by itself counts all rows alike."""
    if table is None:
        yield
        return

    def own(_table: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"position_ids": at}

    def of_rows(_table: nn.Module, _args: Any, embedded: Tensor) -> Tensor:
        return embedded.reshape(len(at), 1, -1)

    hooks = [table.register_forward_pre_hook(own, with_kwargs=True), table.register_forward_hook(of_rows)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
