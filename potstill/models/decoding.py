"""Token by token: a model with a key/value cache of a few slots, which sequences enter and leave one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from potstill.errors import ModelError
from potstill.models.families import Family, check_positions, evaluating
from potstill.models.products import head_logits, suited_products

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as transformers calls them
EAGER = "eager"  # attention that adds its mask to the scores; all other reads where it is true
Mask = Shaped[Tensor, "active 1 1 width"]


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
    Raises: ModelError for a model that has not as many positions, or layers of another kind.
    """

    def __init__(self, family: Family, slots: int, capacity: int):
        self._config = family.model.config.get_text_config()
        check_decodable(self._config, capacity)
        self._family = family
        self._layers = [SlotLayer(slots, capacity) for _ in range(self._config.num_hidden_layers)]
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
        hidden = self._hidden(tokens[:, None], at[:, None], _seen(self._config, at, width, self._family.model.dtype))
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

    def _hidden(self, ids: Tensor, positions: Tensor, mask: Mask | dict[str, Mask] | None) -> Tensor:
        model = self._family.model
        with suited_products(model.get_input_embeddings().weight):
            return model.base_model(
                input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=self._cache, use_cache=True
            ).last_hidden_state


def check_decodable(config: Any, capacity: int) -> None:
    """Refuse a model that is built otherwise, and more tokens than one has positions for.

    Raises: ModelError.
    """
    others = set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING}
    if others:
        raise ModelError(
            f"some of its layers are {', '.join(sorted(others))}; the sampler knows {FULL} and {SLIDING}",
            "use another model, or engine: vllm where a rollout samples from the student",
        )
    check_positions(config, capacity, "a prompt with its response")


@torch.no_grad()
def check_decoding(family: Family) -> None:
    """Refuse a model that says something else token by token than over a whole sequence, for whatever reason: rows that
    see each other's padding, masks read otherwise, layers that share their keys.

    Raises: ModelError, naming the largest difference; as CausalDecoder.
    """
    rows = [[(7 * row + at) % family.vocab_size for at in range(length)] for row, length in enumerate((3, 6))]
    device = family.model.device
    with evaluating(family):
        decoder = CausalDecoder(family, len(rows), max(map(len, rows)))
        decoder.admit([row[:-1] for row in rows])
        ours = decoder.step(torch.tensor([row[-1] for row in rows], device=device)).float()
        whole = [family.model(input_ids=torch.tensor([row], device=device), use_cache=False).logits for row in rows]
    own = torch.stack([logits[0, -1, : family.vocab_size] for logits in whole]).float()
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
