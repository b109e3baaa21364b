"""Rows laid end to end as one, so that a causal model computes nothing for padding: what attends, and who can.

Everything in a decoder but its attention treats each token by itself. So the rows of a batch go through it as one row,
with positions that begin again at each, and attention is taken row by row, by transformers' own ``sdpa``. The rows'
lengths travel in the place of the attention mask: transformers hands on a mask of four dimensions as it is, to layers
that are computed again for their gradient too, and any other attention fails at it.

Source: Krell et al. 2021, Efficient sequence packing without cross-contamination, arXiv:2107.02027.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PACKED = "potstill_packed"  # what transformers knows the attention by
SDPA = "sdpa"
# Kinds of layers whose attention over a row that fits into their window is causal and nothing else.
CAUSAL_LAYERS = frozenset({"full_attention", "sliding_attention"})
WINDOWS = ("sliding_window", "attention_chunk_size")  # how configs say how far back a layer looks
# Products of a layer that take as long as attending to one row more: half a million in the one measurement there is,
# a LLaMA of width 64 on one core of a CPU (bench/packing.py).
ROW_COST = 500_000
# What models tell their attention that changes nothing about it, where no row is longer than the window.
OF_NO_CONSEQUENCE = frozenset({"position_ids", "use_cache", "sliding_window", "output_attentions"})


@dataclass(frozen=True)
class Packing:
    """That a model can be given rows laid end to end.

    Args:
        configs: the model's own, which say how it attends.
        window: tokens that a row may have; None where any number.
        padding: tokens of it that a row has to have, in the mean over a batch, for packing to take less time.
    """

    configs: tuple[Any, ...]
    window: int | None
    padding: float

    def pays(self, lengths: Sequence[int]) -> bool:
        """Whether there is padding that is worth leaving out, and no row that is longer than some layer looks back."""
        longest = max(lengths)
        padding = longest - sum(lengths) / len(lengths)
        return padding > self.padding and (self.window is None or longest <= self.window)

    def states(
        self, model: Any, ids: Int[Tensor, "batch tokens"], lengths: Sequence[int]
    ) -> Float[Tensor, "one total hidden"]:
        """The last states of rows that begin at the left and have these lengths, end to end."""
        real = real_of(ids, lengths)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        with self.attending():
            return model.base_model(
                input_ids=ids[real][None],
                position_ids=positions[real][None],
                attention_mask=torch.tensor(lengths)[None, None, None],
                use_cache=False,
            ).last_hidden_state

    @contextmanager
    def attending(self) -> Iterator[None]:
        """While it is open, the model attends row by row."""
        before = [config._attn_implementation for config in self.configs]
        for config in self.configs:
            config._attn_implementation = PACKED
        try:
            yield
        finally:
            for config, implementation in zip(self.configs, before, strict=True):
                config._attn_implementation = implementation

    def recomputed(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """What torch's checkpoint opens around a layer, and around it again: which attends as it did at first."""
        is_packed = self.configs[0]._attn_implementation == PACKED
        return nullcontext(), self.attending() if is_packed else nullcontext()


def packing_of(model: Any, *, always: bool = False) -> Packing | str:
    """How a causal model is given rows laid end to end, or why it is not.

    By what its config says, and by trying it on three short rows: those laid end to end must not see each other, and
    must have the states of padded ones. What shows in long rows alone has to be in the config, as windows are.

    Args:
        always: also where leaving out the padding takes more time than it saves.
    """
    config = model.config.get_text_config()
    found = (getattr(module, "config", None) for module in model.modules())
    configs = {id(one): one for one in found if isinstance(one, PreTrainedConfig)}
    if others := {one._attn_implementation for one in configs.values()} - {SDPA}:
        return f"its attention is {', '.join(map(str, others))}, not {SDPA}"
    if not type(model).__module__.startswith("transformers."):
        return "its code is not that of transformers"
    if others := set(getattr(config, "layer_types", None) or ()) - CAUSAL_LAYERS:
        return f"it has layers of {', '.join(sorted(others))}"
    windows = [window for name in WINDOWS if (window := getattr(config, name, None))]
    padding = 0 if always else ROW_COST / _products(model)
    packing = Packing(tuple(configs.values()), min(windows, default=None), padding)
    return _difference(packing, model) or packing


def _products(model: Any) -> float:
    """Of one token in one layer, in the mean."""
    weights = sum(p.numel() for p in model.base_model.parameters()) - model.get_input_embeddings().weight.numel()
    return max(weights, 1) / model.config.get_text_config().num_hidden_layers


def real_of(of: Tensor, lengths: Sequence[int]) -> Tensor:
    """Which tokens of a batch of rows that begin at the left are real."""
    columns = torch.arange(of.shape[1], device=of.device)
    return columns < torch.tensor(lengths, device=of.device)[:, None]


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "one heads total channel"],
    key: Float[Tensor, "one groups total channel"],
    value: Float[Tensor, "one groups total channel"],
    attention_mask: Int[Tensor, "one one one rows"],
    **given: Any,
) -> tuple[Float[Tensor, "one total heads channel"], None]:
    """Causal attention inside each row, as transformers calls an attention.

    Args:
        attention_mask: the rows' lengths, in order.
        given: dropout, scaling, and whatever else a model tells its attention.
    Raises: ValueError for what would be more than causal attention, and where lengths and tokens differ in number.
    """
    told = {name: given.pop(name, None) for name in OF_NO_CONSEQUENCE}
    unknown = [name for name, setting in given.items() if setting is not None and name not in ("dropout", "scaling")]
    if unknown or told["output_attentions"] or not getattr(module, "is_causal", True):
        raise ValueError(f"this is not causal attention alone: {', '.join(unknown) or type(module).__name__}")
    lengths = [int(length) for length in attention_mask.flatten().tolist()]
    if sum(lengths) != query.shape[2]:
        raise ValueError(f"rows of {sum(lengths)} tokens in all, and there are {query.shape[2]}")
    alike = [(length, len(list(rows))) for length, rows in groupby(lengths)]
    # Split, not sliced: the gradient of each slice would be as long as all rows together.
    sizes = [length * rows for length, rows in alike]
    parts = (whole[0].split(sizes, 1) for whole in (query, key, value))
    found = []
    for (length, rows), *part in zip(alike, *parts, strict=True):
        queries, keys, values = (one.unflatten(1, (rows, length)).transpose(0, 1) for one in part)
        attended, _ = sdpa_attention_forward(module, queries, keys, values, None, is_causal=True, **given)
        found.append(attended.flatten(0, 1))
    return torch.cat(found)[None], None


AttentionInterface.register(PACKED, packed_attention)


@torch.no_grad()
def _difference(packing: Packing, model: Any) -> str | None:
    """What is wrong with a model's states of rows laid end to end, on three short ones; None where nothing is."""
    lengths = [min(length, packing.window or length) for length in (4, 7, 1)]
    columns = torch.arange(1, max(lengths) + 1, device=next(model.parameters()).device)
    ids = torch.stack([columns, columns + 3, columns + 5]) % model.get_input_embeddings().weight.shape[0]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        padded = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        packed = packing.states(model, ids, lengths)[0]
        beside_another = packing.states(model, torch.cat([ids[:1].flip(1), ids[1:]]), lengths)[0]
    except Exception as error:  # an architecture may fail in any way at what it was not made for
        return f"it cannot read rows laid end to end: {type(error).__name__}"
    finally:
        for module in training:
            module.training = True
    own = padded[real_of(ids, lengths)]
    if not torch.equal(packed[lengths[0] :], beside_another[lengths[0] :]):
        return "rows laid end to end see each other"
    allowed = torch.finfo(own.dtype).eps ** 0.5 * float(own.abs().max())  # a wrong position is worth far more
    difference = float((packed - own).abs().max())
    return None if difference <= allowed else f"rows laid end to end differ by {difference:.3g} from padded ones"
