"""The only code that knows how a model is fed: one adapter per family. Everything after it is response-aligned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from potstill.errors import ModelError
from potstill.models.layout import is_encoder_decoder
from potstill.models.packing import Packing, packing_of, real_of
from potstill.types import Batch, Head, StudentOutput


class Family(nn.Module, ABC):
    """How a model is fed, and where its logits come from.

    ``packing`` is how rows are laid end to end, where they are, and ``why_padded`` why not: see ``pack``.
    """

    def __init__(self, model: Any, vocab_size: int | None = None):
        super().__init__()
        self.model = model
        self.vocab_size = vocab_size or model.get_output_embeddings().weight.shape[0]
        self.packing: Packing | None = None
        self.why_padded: str | None = "it was not asked to"
        self.train(model.training)

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, "batch response hidden"]:
        """The states that predict each response token; what stands at padding is arbitrary but finite."""

    @abstractmethod
    def aligned(
        self, states: Float[Tensor, "rows tokens channel"], batch: Batch
    ) -> Float[Tensor, "batch response channel"]:
        """Of states as the model has them inside, those that predict each response token, as ``forward`` has them.

        The model's rows are those of the batch, or one where they are laid end to end; rows and tokens may be in one,
        as OPT's MLPs have them.
        """

    @abstractmethod
    def predicting(self, batch: Batch) -> Bool[Tensor, "rows tokens"]:
        """Where in what the decoder's layers hold the states stand that predict real response tokens, in their order.

        ``rows`` and ``tokens`` are those of what the decoder reads in ``forward``.
        """

    @abstractmethod
    def num_positions(self, batch: Batch) -> tuple[int, ...]:
        """Positions that its layers compute for a batch, padding included; of an encoder's and of a decoder's apart."""

    @property
    def head(self) -> Head:
        """The output embedding with whatever the family does to its logits (soft cap, scale)."""
        embedding = self.model.get_output_embeddings()
        if not isinstance(embedding, nn.Linear) or not _is_plain(embedding.weight):
            raise ModelError(
                f"the output embedding is a {type(embedding).__name__}, not a matrix",
                "load the model without quantisation or adapters on its output embedding",
            )
        bias = _bias(self.model, embedding)
        return Head(embedding.weight, bias, _transform(self.model.config), self.vocab_size)

    def output(self, batch: Batch) -> StudentOutput:
        return StudentOutput(self(batch), self.head)

    @abstractmethod
    def generation_inputs(self, batch: Batch) -> dict[str, Any]:
        """What transformers' ``generate`` takes to answer the prompts."""

    @abstractmethod
    def written(self, sequences: Int[Tensor, "batch tokens"], batch: Batch) -> Int[Tensor, "batch response"]:
        """The responses in what ``generate`` gave back for the prompts of ``batch``."""

    @abstractmethod
    def own_logits(
        self, prompts: Int[Tensor, "batch prompt"], responses: Int[Tensor, "batch response"]
    ) -> Float[Tensor, "batch response vocab"]:
        """What the model's own forward says of each response token, of rows without padding: what we are held to."""


class Causal(Family):
    """A decoder-only model: prompt and response are one sequence, and a state predicts the token after it."""

    def forward(self, batch: Batch) -> Float[Tensor, "batch response hidden"]:
        """As every family's.

        Rows are moved to the left before the model sees them, so that all padding is on the right, where a causal
        model cannot look: no attention mask is needed, positions count from 0, and padding changes nothing. Where rows
        can be laid end to end there is none.
        """
        ids, _ = left_aligned(batch)
        if self.packing and (lengths := self._end_to_end(batch)):
            return self.aligned(self.packing.states(self.model, ids, lengths), batch)
        return self.aligned(self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state, batch)

    def aligned(
        self, states: Float[Tensor, "rows tokens channel"], batch: Batch
    ) -> Float[Tensor, "batch response channel"]:
        offsets = torch.arange(batch.response_ids.shape[1], device=states.device)
        at = batch.prompt_mask.sum(1)[:, None] - 1 + offsets
        if self._end_to_end(batch):
            lengths = _lengths(batch)[:, None]
            at = (lengths.cumsum(0) - lengths + at.minimum(lengths - 1)).view(1, -1)
        rows = states.view(len(at), -1, states.shape[-1])
        at = at.clamp_max(rows.shape[1] - 1)[..., None].expand(-1, -1, rows.shape[-1])
        return rows.gather(1, at).view(*batch.response_ids.shape, rows.shape[-1])

    def predicting(self, batch: Batch) -> Bool[Tensor, "rows tokens"]:
        first, count = batch.prompt_mask.sum(1)[:, None] - 1, batch.response_mask.sum(1)[:, None]
        at = torch.arange(int((first + 1 + count).max()), device=first.device)
        found = (at >= first) & (at < first + count)
        lengths = self._end_to_end(batch)
        return found[real_of(found, lengths)][None] if lengths else found

    def num_positions(self, batch: Batch) -> tuple[int, ...]:
        lengths = _lengths(batch)
        return (int(lengths.sum() if self._end_to_end(batch) else len(lengths) * lengths.max()),)

    def _end_to_end(self, batch: Batch) -> list[int]:
        """The lengths of a batch's rows where the model reads them as one; none where it reads a padded rectangle."""
        if self.packing is None:
            return []
        lengths = _lengths(batch).tolist()
        return lengths if self.packing.pays(lengths) else []

    def generation_inputs(self, batch: Batch) -> dict[str, Any]:
        return {"input_ids": batch.prompt_ids, "attention_mask": batch.prompt_mask.long()}

    def written(self, sequences: Int[Tensor, "batch tokens"], batch: Batch) -> Int[Tensor, "batch response"]:
        return sequences[:, batch.prompt_ids.shape[1] :]

    def own_logits(
        self, prompts: Int[Tensor, "batch prompt"], responses: Int[Tensor, "batch response"]
    ) -> Float[Tensor, "batch response vocab"]:
        logits = self.model(input_ids=torch.cat([prompts, responses], 1), use_cache=False).logits
        return logits[:, prompts.shape[1] - 1 : -1, : self.vocab_size]


class Seq2Seq(Family):
    """An encoder-decoder model: the prompt is the source, the response the target, and the two are never joined.

    The decoder reads its start token and then the response, so its state at each position predicts the response token
    of that position.
    """

    def forward(self, batch: Batch) -> Float[Tensor, "batch response hidden"]:
        """As every family's.

        Prompts are moved to the left, so that a model's positions count from 0; the padding behind them is masked for
        encoder and decoder. That of the responses is on the right, where a decoder cannot look.
        """
        source, mask = source_of(batch)
        states = self.model.get_encoder()(input_ids=source, attention_mask=mask).last_hidden_state
        return self.model.get_decoder()(
            input_ids=self._shifted(batch.response_ids),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state

    def aligned(
        self, states: Float[Tensor, "rows tokens channel"], batch: Batch
    ) -> Float[Tensor, "batch response channel"]:
        return states.view(*batch.response_ids.shape, states.shape[-1])  # the decoder reads nothing but the response

    def predicting(self, batch: Batch) -> Bool[Tensor, "batch tokens"]:
        return batch.response_mask

    def num_positions(self, batch: Batch) -> tuple[int, ...]:
        return source_of(batch)[0].numel(), batch.response_ids.numel()

    def generation_inputs(self, batch: Batch) -> dict[str, Any]:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        source, mask = source_of(batch)
        return {
            "input_ids": source,
            "attention_mask": mask.long(),
            "decoder_start_token_id": start_token_of(self.model),
            # Its own would have as many layers as a T5's encoder, and the decoder may have more.
            "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()),
        }

    def written(self, sequences: Int[Tensor, "batch tokens"], batch: Batch) -> Int[Tensor, "batch response"]:
        return sequences[:, 1:]  # the start token is no token of the response

    def own_logits(
        self, prompts: Int[Tensor, "batch prompt"], responses: Int[Tensor, "batch response"]
    ) -> Float[Tensor, "batch response vocab"]:
        said = self.model(input_ids=prompts, decoder_input_ids=self._shifted(responses), use_cache=False)
        return said.logits[..., : self.vocab_size]

    def _shifted(self, responses: Int[Tensor, "batch response"]) -> Int[Tensor, "batch response"]:
        start = responses.new_full((len(responses), 1), start_token_of(self.model))
        return torch.cat([start, responses[:, :-1]], 1)


def family_of(model: Any, vocab_size: int | None = None) -> Family:
    """The adapter of a model.

    Args:
        vocab_size: logits that are looked at, where the output embedding has rows beyond the tokenizer's.
    """
    return (Seq2Seq if is_encoder_decoder(model.config) else Causal)(model, vocab_size)


def left_aligned(batch: Batch) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, " batch"]]:
    """Prompt and response of each row without padding between or before them, and the prompts' lengths."""
    ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)
    return _from_prompt(batch, ids, int(_lengths(batch).max())), batch.prompt_mask.sum(1)


def _lengths(batch: Batch) -> Int[Tensor, " batch"]:
    """Real tokens of each row."""
    return batch.prompt_mask.sum(1) + batch.response_mask.sum(1)


def source_of(batch: Batch) -> tuple[Int[Tensor, "batch source"], Bool[Tensor, "batch source"]]:
    """The prompts with their padding on the right, and which of their tokens are real."""
    lengths = batch.prompt_mask.sum(1)
    longest = int(lengths.max())
    mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
    return _from_prompt(batch, batch.prompt_ids, longest), mask


def _from_prompt(batch: Batch, ids: Int[Tensor, "batch tokens"], longest: int) -> Int[Tensor, "batch longest"]:
    """``longest`` ids of each row from where its prompt begins."""
    start = batch.prompt_ids.shape[1] - batch.prompt_mask.sum(1)
    at = (start[:, None] + torch.arange(longest, device=ids.device)).clamp_max(ids.shape[1] - 1)
    return ids.gather(1, at)


def start_token_of(model: Any) -> int:
    """The token a decoder begins with. Raises: ModelError for a model that does not say which."""
    for config in (model.config, model.generation_config):
        if (token := getattr(config, "decoder_start_token_id", None)) is not None:
            return int(token)
    raise ModelError(
        "the model does not say what its decoder starts with",
        "set decoder_start_token_id in its config.json: the pad token's id for T5, the end token's for BART",
    )


def _is_plain(weight: Tensor) -> bool:
    """Whether a matrix is its numbers, and not a quantised form of them, or the place of some that are elsewhere."""
    quantised = type(weight).__module__.startswith(("torchao", "bitsandbytes"))
    return weight.is_floating_point() and not (quantised or weight.is_meta)


def _bias(model: Any, embedding: nn.Linear) -> Float[Tensor, " rows"] | None:
    """What is added to each logit; BART and its kin keep it beside their output embedding."""
    beside = getattr(model, "final_logits_bias", None)
    if beside is None:
        return embedding.bias
    return beside[0] if embedding.bias is None else beside[0] + embedding.bias


def _transform(config: Any) -> Callable[[Tensor], Tensor] | None:
    """What the family's own forward does to the logits after the matrix; None where nothing."""
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    if getattr(config, "scale_decoder_outputs", False):  # T5's first version, whose head is its embedding
        scale *= config.d_model**-0.5
    if softcap is None and scale == 1:
        return None

    def transform(logits: Tensor) -> Tensor:
        scaled = logits * scale
        return scaled if softcap is None else softcap * torch.tanh(scaled / softcap)

    return transform


@torch.no_grad()
def check_projection(family: Family, name: str) -> None:
    """Refuse a model whose logits we would compute differently from its own forward.

    Raises: ModelError, naming the largest difference.
    """
    device = next(family.model.parameters()).device
    ids = torch.arange(1, 9, device=device)[None] % family.vocab_size
    own = family.own_logits(ids[:, :4], ids[:, 4:])[0].float()
    mask: Bool[Tensor, "one tokens"] = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch(ids[:, :4], mask[:, :4], ids[:, 4:], mask[:, 4:], ("probe",))
    ours = family.head(family(batch))[0].float()
    difference = (ours - own).abs().max().item()
    if not difference <= 1e-2 * own.abs().max().item() + 1e-3:
        raise ModelError(
            f"{name}: its logits differ by {difference:.3g} from its output embedding applied to its last state",
            "this architecture needs an adapter in potstill/models/families.py",
        )


def pack(family: Family, wanted: Literal["auto", "always", "never"] = "auto") -> str | None:
    """From now on lay rows of unlike lengths end to end for the model, if it can read them so.

    What comes out is the same up to rounding, and nothing is computed for padding.

    Args:
        wanted: auto: on a CPU, for batches where it saves time. always: on any device, wherever there is padding.
    Returns: why rows stay padded; None where they do not.
    """
    found = _packing(family, wanted)
    family.packing, family.why_padded = (None, found) if isinstance(found, str) else (found, None)
    return family.why_padded


def _packing(family: Family, wanted: Literal["auto", "always", "never"]) -> Packing | str:
    """How a model's rows are laid end to end, or why not."""
    if wanted == "never":
        return "packing is never"
    if not isinstance(family, Causal):
        return "it reads sources and targets"
    device = next(family.model.parameters()).device
    if wanted == "auto" and device.type != "cpu":
        return f"packing is auto, and it is on {device.type}"
    return packing_of(family.model, always=wanted == "always")


@contextmanager
def evaluating(family: Family) -> Iterator[None]:
    """Dropout off, and every module as before afterwards: some may be kept from training on purpose."""
    training = [module for module in family.modules() if module.training]
    family.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
