"""Token by token: a model with a key/value cache of a few slots, which sequences enter and leave one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers.cache_utils import Cache

from potstill.errors import ModelError
from potstill.models.families import Family, evaluating
from potstill.models.layout import is_encoder_decoder
from potstill.models.positions import check_positions
from potstill.models.products import Repeated, head_logits, suited_products
from potstill.models.replayed import Record, Replayed, recorder_for
from potstill.models.seq2seq_decoding import Seq2SeqDecoder
from potstill.models.slots import EAGER, Decoder, SlotLayer, distinct_of

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as transformers calls them
Mask = Shaped[Tensor, "active 1 1 width"]


class CausalDecoder:
    """A decoder-only model as a ``Decoder``.

    Args:
        family: the model; put it into evaluation mode first, and leave its weights alone while this is in use.
        slots: sequences at a time.
        capacity: tokens a sequence may have, prompt included.
        record: what records its steps, to replay them; None leaves them as they are.
    Raises: ModelError for a model that has not as many positions, or layers of another kind.
    """

    start: int | None = None

    def __init__(self, family: Family, slots: int, capacity: int, record: Record | None = None):
        self._config = family.model.config.get_text_config()
        check_decodable(self._config, capacity, 0)
        self._family = family
        self._layers = [SlotLayer(slots, capacity) for _ in range(self._config.num_hidden_layers)]
        self._cache = Cache(layers=list(self._layers))
        self._lengths: list[int] = []
        self._products = Repeated(family)
        self._replayed = record and Replayed(self._logits, slots, capacity, family.model.device, record)

    @torch.no_grad()
    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "new vocab"]:
        """Prompts of any lengths; padding is on the right, where a causal model cannot look.

        One that stands there several times is read once, and its keys and values are copied.
        """
        distinct, which = distinct_of(prompts)
        lengths = [len(prompt) for prompt in distinct]
        width, device = max(lengths), self._family.model.device
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in distinct], device=device)
        first = len(self._lengths)
        self._begin(first, width, None)
        with suited_products(self._family.model.get_input_embeddings().weight):
            hidden = self._hidden(ids, torch.arange(width, device=device).expand(len(distinct), -1), None)
        last = torch.tensor(lengths, device=device) - 1
        logits = head_logits(self._family.head, hidden[torch.arange(len(distinct), device=device), last])
        if len(distinct) == len(prompts):
            self._lengths += lengths
            return logits
        # From the last place on: what a place holds is wanted by those behind it alone.
        for place in (place for place in reversed(range(len(which))) if which[place] != place):
            for layer in self._layers:
                layer.move(first + which[place], first + place, lengths[which[place]])
        self._lengths += [lengths[at] for at in which]
        return logits[torch.tensor(which, device=device)]

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " active"]) -> Float[Tensor, "active vocab"]:
        if self._replayed:
            logits = self._replayed(tokens, self._lengths)
        else:
            at = torch.tensor(self._lengths, device=tokens.device)
            logits = self._logits(tokens, at, max(self._lengths) + 1)
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def leave(self, place: int) -> None:
        last = len(self._lengths) - 1
        if place != last:
            for layer in self._layers:
                layer.move(last, place, self._lengths[last])
            self._lengths[place] = self._lengths[last]
        self._lengths.pop()

    def _logits(
        self, tokens: Int[Tensor, " rows"], at: Int[Tensor, " rows"], width: int
    ) -> Float[Tensor, "rows vocab"]:
        """After a token at a column of each of the first slots, which see their own columns up to it."""
        self._begin(0, width, (torch.arange(len(at), device=at.device), at))
        mask = _seen(self._config, at, width, self._family.model.dtype)
        with self._products.body():
            hidden = self._hidden(tokens[:, None], at[:, None], mask)
        return self._products.head(hidden[:, 0])

    def _begin(self, first: int, width: int, at: tuple[Tensor, Tensor] | None) -> None:
        for layer in self._layers:
            layer.begin(first, width, at)

    def _hidden(self, ids: Tensor, positions: Tensor, mask: Mask | dict[str, Mask] | None) -> Tensor:
        return self._family.model.base_model(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=self._cache, use_cache=True
        ).last_hidden_state


def decoder_of(family: Family, slots: int, longest_prompt: int, max_new_tokens: int) -> Decoder:
    """A model at work on as many sequences as there are slots.

    Args:
        family: the model; put it into evaluation mode first.
        slots: sequences at a time.
        longest_prompt, max_new_tokens: tokens that a prompt and its response may have.
    Raises: ModelError as ``check_decodable``.
    """
    config = family.model.config.get_text_config()
    check_decodable(config, longest_prompt, max_new_tokens)
    if is_encoder_decoder(config):
        return Seq2SeqDecoder(family, slots, longest_prompt, max_new_tokens)
    return CausalDecoder(family, slots, longest_prompt + max_new_tokens, recorder_for(family.model))


def check_decodable(config: Any, longest_prompt: int, max_new_tokens: int) -> None:
    """Refuse a model that is built otherwise, and more tokens than one has positions for.

    Raises: ModelError.
    """
    others = set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING}
    if others:
        raise ModelError(
            f"some of its layers are {', '.join(sorted(others))}; the sampler knows {FULL} and {SLIDING}",
            "use another model, or engine: vllm where a rollout samples from the student",
        )
    check_positions(config, longest_prompt, max_new_tokens, "a prompt with its response")


@torch.no_grad()
def check_decoding(family: Family) -> None:
    """Refuse a model that says something else token by token than over a whole sequence, for whatever reason: rows that
    see each other's padding, masks read otherwise, layers that share their keys.

    Raises: ModelError, naming the largest difference; as ``decoder_of``.
    """
    device = family.model.device
    rows = [
        [torch.tensor([[(7 * row + at) % family.vocab_size for at in range(length)]], device=device) for length in pair]
        for row, pair in enumerate([(2, 4), (7, 2)])
    ]
    (first, written), (second, later) = rows
    with evaluating(family):
        decoder = decoder_of(family, len(rows), 7, 4)
        decoder.admit(first.tolist())  # and the second when two tokens are written: rows of different ages
        for at in range(2):
            decoder.step(written[:, at])
        decoder.admit(second.tolist())
        ours = decoder.step(torch.cat([written[:, 2], later[:, 0]])).float()
        own = torch.cat([family.own_logits(*row)[:, -1] for row in rows]).float()
    difference = (ours - own).abs().max().item()
    # The same share as of a projection would refuse bfloat16, whose errors add up over layers in two ways here.
    if not difference <= 3e-2 * own.abs().max().item() + 1e-3:
        raise ModelError(
            f"token by token its logits differ by {difference:.3g} from those over a whole sequence",
            "this architecture needs an adapter in potstill/models/decoding.py",
        )


def _seen(config: Any, at: Int[Tensor, " active"], width: int, dtype: torch.dtype) -> Mask | dict[str, Mask]:
    """What the token at column ``at`` of each sequence attends to, in the form its model takes: a mask, or one for each
    kind of layer where it has kinds."""
    columns = torch.arange(width, device=at.device)
    full = (columns <= at[:, None])[:, None, None]
    window = getattr(config, "sliding_window", None)
    near = full & (columns > (at - window)[:, None])[:, None, None] if window else full
    if config._attn_implementation == EAGER:
        full, near = (torch.zeros_like(m, dtype=dtype).masked_fill(~m, torch.finfo(dtype).min) for m in (full, near))
    return {FULL: full, SLIDING: near} if getattr(config, "layer_types", None) else near
