"""Students narrower than their teacher: fewer channels, heads and inner channels, the most active of them kept.

What stays is the same in the whole model for the residual stream, and each layer's own for heads and inner channels.

Source: Muralidharan et al. 2024, Minitron, arXiv:2407.14679, section 2.2: importance is how large activations are, of
the residual stream behind the norms; here the mean over a text's real tokens, then the root of the mean square over
texts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models.axes import Layout, axes_of, layout_of
from potstill.models.families import family_of
from potstill.models.layout import DECODER, auto_class, is_encoder_decoder, stacks_of
from potstill.types import Batch


@dataclass(frozen=True)
class Widths:
    """How wide a student is; None for as wide as its teacher. ``heads`` counts those of queries."""

    hidden: int | None = None
    heads: int | None = None
    mlp: int | None = None

    def __bool__(self) -> bool:
        return any(width is not None for width in (self.hidden, self.heads, self.mlp))


@dataclass(frozen=True)
class Sizes:
    """How wide a model is. ``group``: query heads to each head of keys; ``head``: channels of one."""

    hidden: int
    heads: int
    mlp: int
    group: int
    head: int


@dataclass(frozen=True)
class Importance:
    """How large activations are: of the residual stream behind the norms, and of each layer's heads of keys and inner
    channels."""

    hidden: Float[Tensor, " hidden"]
    heads: Float[Tensor, "layer heads"]
    mlp: Float[Tensor, "layer mlp"]


@dataclass(frozen=True)
class Chosen:
    """What stays, in rising order: channels of the residual stream, and heads of keys and inner channels by layer."""

    hidden: Int[Tensor, " hidden"]
    heads: Int[Tensor, "layer heads"]
    mlp: Int[Tensor, "layer mlp"]

    def as_data(self) -> dict[str, Any]:
        """As lists, for a run's record."""
        return {"hidden": self.hidden.tolist(), "heads": self.heads.tolist(), "mlp": self.mlp.tolist()}

    @classmethod
    def of_data(cls, told: Mapping[str, Any]) -> Chosen:
        """What ``as_data`` wrote."""
        return cls(*(torch.tensor(told[name]) for name in ("hidden", "heads", "mlp")))


def first_of(model: Any, wanted: Widths) -> Chosen:
    """The first channels and heads, for a model whose weights say nothing. Raises: ModelError."""
    sizes, layers = check_widths(model, wanted), len(stacks_of(model)[DECODER].layers)
    heads = torch.arange((wanted.heads or sizes.heads) // sizes.group)
    mlp = torch.arange(wanted.mlp or sizes.mlp)
    return Chosen(torch.arange(wanted.hidden or sizes.hidden), heads.expand(layers, -1), mlp.expand(layers, -1))


def sizes_of(model: Any) -> Sizes:
    """Raises: ModelError for an encoder-decoder model, and one whose names are not known."""
    config = model.config
    if is_encoder_decoder(config):
        raise ModelError("an encoder-decoder model cannot be cut in width yet", "cut its layers alone (keep_layers)")
    layout = layout_of(config)
    first: Any = stacks_of(model)[DECODER].layers[0]
    inner, out = first.get_submodule(layout.mlp_out).weight, first.get_submodule(layout.attention_out).weight
    inputs = 0 if layout.inputs_first else 1
    heads = int(getattr(config, layout.config["heads"]))
    keys = int(getattr(config, layout.config.get("key_heads", layout.config["heads"])))
    return Sizes(
        hidden=out.shape[1 - inputs],
        heads=heads,
        mlp=inner.shape[inputs],
        group=heads // keys,
        head=out.shape[inputs] // heads,
    )


def check_widths(model: Any, wanted: Widths) -> Sizes:
    """The model's sizes, where a student can have the widths that are wanted. Raises: ModelError."""
    sizes, layout = sizes_of(model), layout_of(model.config)
    for name in ("hidden", "heads", "mlp"):
        keep, there = getattr(wanted, name), getattr(sizes, name)
        if keep is not None and keep > there:
            raise ModelError(f"keep_{name} is {keep} but the model has {there}", f"set it to at most {there}")
    heads, hidden = wanted.heads or sizes.heads, wanted.hidden or sizes.hidden
    if heads % sizes.group:
        raise ModelError(
            f"keep_heads is {heads}, and {sizes.group} heads of queries share one of keys and values",
            f"set it to a multiple of {sizes.group}",
        )
    if layout.head_of_hidden and heads * sizes.head != hidden:
        raise ModelError(
            f"a {model.config.model_type} of {heads} heads of {sizes.head} channels is {heads * sizes.head} wide, and "
            f"keep_hidden {hidden}",
            f"set keep_hidden to {heads * sizes.head}, or keep_heads to {hidden // sizes.head}",
        )
    _check_config(_cut_config(model.config, layout, sizes, hidden, heads // sizes.group, wanted.mlp or sizes.mlp))
    return sizes


def _check_config(config: Any) -> None:
    """Refuse now what transformers would refuse to load once it is trained. Raises: ModelError."""
    try:
        config.validate()
    except StrictDataclassError as error:
        reason = str(error.__cause__ or error).rstrip(".")
        heads = config.num_attention_heads
        below = config.hidden_size // heads * heads
        raise ModelError(
            f"transformers has no such {config.model_type}: {reason}",
            f"set keep_hidden to {below} or {below + heads}, multiples of the heads, or keep_heads",
        ) from None


@torch.no_grad()
def importance(model: Any, batches: Sequence[Batch]) -> Importance:
    """How large activations are on these texts, padding left out. Raises: ModelError as ``sizes_of``."""
    sizes, layout, family = sizes_of(model), layout_of(model.config), family_of(model)
    layers = stacks_of(model)[DECODER].layers
    found = Importance(
        torch.zeros(sizes.hidden, dtype=torch.float64),
        torch.zeros(len(layers), sizes.heads // sizes.group, dtype=torch.float64),
        torch.zeros(len(layers), sizes.mlp, dtype=torch.float64),
    )
    num_texts = 0
    for batch in batches:
        lengths = batch.prompt_mask.sum(1) + batch.response_mask.sum(1)
        real = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        num_texts += len(batch)
        with _reading(layers, layout) as seen:
            family(batch)
        for at, read in enumerate(seen):
            states = {name: one.view(*real.shape, -1) for name, one in read.items()}
            by_head = states[layout.attention_out].unflatten(-1, (found.heads.shape[1], -1)).norm(dim=-1)
            for name in layout.reads:
                found.hidden.add_(_squares(states[name], real))
            found.heads[at].add_(_squares(by_head, real))
            found.mlp[at].add_(_squares(states[layout.mlp_out], real))
    return Importance(*(value.div(num_texts).sqrt().float() for value in (found.hidden, found.heads, found.mlp)))


def _squares(states: Float[Tensor, "batch tokens channel"], real: Tensor) -> Float[Tensor, " channel"]:
    """The square of each text's mean size over its real tokens, summed over texts."""
    masked = states.abs().double() * real[..., None]
    return (masked.sum(1) / real.sum(1, keepdim=True)).square().sum(0).cpu()


@contextmanager
def _reading(layers: nn.ModuleList, layout: Layout) -> Iterator[list[dict[str, Tensor]]]:
    """What some matrices of each layer read, by their name in it."""
    seen: list[dict[str, Tensor]] = [{} for _ in layers]

    def taking(place: dict[str, Tensor], name: str) -> Any:
        def take(_module: nn.Module, args: Any, kwargs: Any) -> None:
            place[name] = args[0] if args else next(iter(kwargs.values()))

        return take

    hooks = [
        layer.get_submodule(name).register_forward_pre_hook(taking(place, name), with_kwargs=True)
        for layer, place in zip(layers, seen, strict=True)
        for name in (*layout.reads, layout.attention_out, layout.mlp_out)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def choose_widths(model: Any, wanted: Widths, batches: Sequence[Batch]) -> Chosen:
    """What of a model a student keeps: the most active. Raises: ModelError for widths that it cannot have."""
    sizes = check_widths(model, wanted)
    found = importance(model, batches)
    return Chosen(
        _largest(found.hidden[None], wanted.hidden or sizes.hidden)[0],
        _largest(found.heads, (wanted.heads or sizes.heads) // sizes.group),
        _largest(found.mlp, wanted.mlp or sizes.mlp),
    )


def _largest(values: Float[Tensor, "row channel"], count: int) -> Int[Tensor, "row kept"]:
    return values.topk(count).indices.sort().values


def cut_width(model: Any, chosen: Chosen) -> Any:
    """A new model with only what is chosen. Keeping everything gives the same logits, bit for bit; ties stay.

    Raises: ModelError for a weight whose axes are not known.
    """
    layout, sizes, stack = layout_of(model.config), sizes_of(model), stacks_of(model)[DECODER]
    (hidden,), (_, keys), (_, mlp) = chosen.hidden.shape, chosen.heads.shape, chosen.mlp.shape
    config = _cut_config(model.config, layout, sizes, hidden, keys, mlp)
    student = auto_class(config).from_config(config, dtype=model.dtype)
    state = {}
    for name, value in model.state_dict().items():
        layer = int(name.removeprefix(f"{stack.path}.").split(".")[0]) if name.startswith(f"{stack.path}.") else None
        for at, axis in enumerate(axes_of(name, layout)):
            if axis is not None:
                value = value.index_select(at, _indices(axis, layer, sizes, chosen).to(value.device))
        state[name] = value
    student.load_state_dict(state)
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device).eval()


def _cut_config(config: Any, layout: Layout, sizes: Sizes, hidden: int, keys: int, mlp: int) -> Any:
    """The config of a model so wide, with so many heads of keys and inner channels."""
    cut = copy.deepcopy(config)
    made: Mapping[str, int] = {
        "hidden": hidden,
        "embedding": hidden,
        "mlp": mlp,
        "heads": keys * sizes.group,
        "key_heads": keys,
    }
    for name, key in layout.config.items():
        setattr(cut, key, made[name])
    if not layout.head_of_hidden:
        cut.head_dim = sizes.head  # it would be hidden / heads
    return cut


def _indices(axis: str, layer: int | None, sizes: Sizes, chosen: Chosen) -> Int[Tensor, " kept"]:
    """The entries of an axis that stay."""
    if axis == "hidden":
        return chosen.hidden
    assert layer is not None  # no other axis is of the whole model
    if axis == "mlp":
        return chosen.mlp[layer]
    per_head = sizes.head * (sizes.group if axis in ("query", "qkv") else 1)
    own = (chosen.heads[layer][:, None] * per_head + torch.arange(per_head)).flatten()
    if axis == "qkv":
        width = sizes.heads * sizes.head
        return torch.cat([own, own + width, own + 2 * width])
    return own
