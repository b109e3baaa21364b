"""The one head function: our logits are each family's own, and two models of one tokenizer meet on its vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from potstill import objectives
from potstill.errors import ModelError
from potstill.models.families import Family, check_projection, family_of
from potstill.objectives.chunked import BoundTerm, evaluate_terms
from potstill.teachers.align import shared_vocabulary
from potstill.teachers.local import LocalTeacher
from potstill.types import Batch
from tests import tiny

LENGTHS = [(3, 9), (7, 1), (5, 6)]
# Qwen2.5's shape, a five hundredth of it: 151,665 ids, a student of 151,936 rows and a teacher of 152,064.
STUDENT_ROWS, TEACHER_ROWS = tiny.VOCAB + 4, tiny.VOCAB + 8
SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "initializer_range": 0.5,
}  # fmt: skip


def made(model: Any, config: Any, **settings: Any) -> Callable[[int, int], Any]:
    """A maker of random models by seed and rows of their embedding."""

    def make(seed: int, rows: int) -> Any:
        torch.manual_seed(seed)
        whole = model(config(vocab_size=rows, **SIZES | settings))
        if (bias := getattr(whole.get_output_embeddings(), "bias", None)) is not None:
            torch.nn.init.normal_(bias)
        return whole.eval()

    return make


MAKE: dict[str, Callable[[int, int], Any]] = {
    "qwen2 untied": made(Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=False),
    "qwen2 tied": made(Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True),
    "qwen3": made(Qwen3ForCausalLM, Qwen3Config, head_dim=8, tie_word_embeddings=True),
    "gemma2 soft-capped": made(Gemma2ForCausalLM, Gemma2Config, head_dim=8, final_logit_softcapping=3.0),
    "gemma3 soft-capped": made(Gemma3ForCausalLM, Gemma3TextConfig, head_dim=8, final_logit_softcapping=2.0),
    "gemma3": made(Gemma3ForCausalLM, Gemma3TextConfig, head_dim=8),
    "cohere": made(CohereForCausalLM, CohereConfig, logit_scale=0.25),
    "cohere2": made(Cohere2ForCausalLM, Cohere2Config, logit_scale=0.5),
    "granite": made(GraniteForCausalLM, GraniteConfig, logits_scaling=4.0),
    "phi with a bias": made(PhiForCausalLM, PhiConfig),
    "t5 tied and scaled": lambda seed, rows: tiny.t5(seed, vocab=rows),
    "t5 untied": lambda seed, rows: tiny.t5(seed, vocab=rows, gated=True, tied=False),
    "bart with a bias": lambda seed, rows: tiny.bart(seed, vocab=rows),
}


def own_logits(family: Family, batch: Batch) -> list[Tensor]:
    """What the model's own forward says of each row's response, row by row and without padding."""
    found = []
    for row, (_, length) in enumerate(LENGTHS):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]][None]
        found.append(family.own_logits(prompt, batch.response_ids[row : row + 1, :length])[0])
    return found


@pytest.mark.parametrize("kind", MAKE)
def test_our_logits_are_the_models_own(kind: str) -> None:
    model = MAKE[kind](0, STUDENT_ROWS)
    family, batch = family_of(model), tiny.batch(LENGTHS)
    check_projection(family, kind)
    with torch.no_grad():
        ours = family.head(family(batch))
        for row, own in enumerate(own_logits(family, batch)):
            assert own.shape[-1] == STUDENT_ROWS
            torch.testing.assert_close(ours[row, : len(own)], own, rtol=1e-5, atol=1e-5)
            assert own.std() > 1e-3


@pytest.mark.parametrize("kind", ["gemma2 soft-capped", "gemma3 soft-capped", "cohere", "cohere2", "granite"])
def test_what_is_done_to_the_logits_is_needed(kind: str) -> None:
    """Without it the comparison above would fail, so it compares something."""
    family, batch = family_of(MAKE[kind](0, STUDENT_ROWS)), tiny.batch(LENGTHS)
    with torch.no_grad():
        bare = family.head.linear(family(batch))[0, : LENGTHS[0][1]]
        assert (bare - own_logits(family, batch)[0]).abs().max() > 0.1


def by_hand(student: Family, teacher: Family, batch: Batch, size: int) -> Tensor:
    """Mean forward KL on the shared rows, from the models' own forwards."""
    total, count = torch.zeros(()), 0
    with torch.no_grad():
        said = own_logits(teacher, batch)
    for ours, theirs in zip(own_logits(student, batch), said, strict=True):
        log_p, log_q = F.log_softmax(theirs[:, :size], -1), F.log_softmax(ours[:, :size], -1)
        total = total + (log_p.exp() * (log_p - log_q)).sum()
        count += len(ours)
    return total / count


def gradients(family: Family) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in family.model.named_parameters() if p.grad is not None}
    family.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("kind", MAKE)
def test_two_paddings_meet_on_the_shared_vocabulary(kind: str) -> None:
    tokenizer = tiny.tokenizer()
    size = shared_vocabulary(tokenizer, TEACHER_ROWS, tokenizer, STUDENT_ROWS).size
    assert size == STUDENT_ROWS > len(tokenizer)
    student, teacher = family_of(MAKE[kind](1, STUDENT_ROWS), size), family_of(MAKE[kind](2, TEACHER_ROWS), size)
    batch = tiny.batch(LENGTHS)
    expected = by_hand(student, teacher, batch, size)
    expected.backward()
    own = gradients(student)

    scale = batch.response_mask.float() / batch.num_response_tokens
    term = BoundTerm("kd", objectives.forward_kl, "teacher", 1.0, scale)
    signal = LocalTeacher(teacher).signal(batch)
    total, _ = evaluate_terms(student.output(batch), signal, batch, [term], chunk_size=4)
    total.backward()
    found = gradients(student)
    torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=1e-6)
    assert found.keys() == own.keys()
    largest = max(gradient.abs().max().item() for gradient in own.values())
    for name, gradient in own.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=f"{kind}: {name}")
    assert expected > 0.01
    assert largest > 1e-4


def test_rows_beyond_the_shared_vocabulary_are_told_nothing() -> None:
    """The larger model is the student here: its padded rows get no gradient, and move nothing."""
    size = STUDENT_ROWS
    kind = "qwen2 untied"
    student, teacher = family_of(MAKE[kind](1, TEACHER_ROWS), size), family_of(MAKE[kind](2, STUDENT_ROWS), size)
    batch = tiny.batch(LENGTHS)
    term = BoundTerm("kd", objectives.forward_kl, "teacher", 1.0, batch.response_mask.float())
    losses = []
    for value in (0.0, 50.0):
        with torch.no_grad():
            student.model.lm_head.weight[size:] = value
        total, _ = evaluate_terms(student.output(batch), LocalTeacher(teacher).signal(batch), batch, [term])
        total.backward()
        grad = gradients(student)["lm_head.weight"]
        assert grad[size:].abs().max() == 0 < grad[:size].abs().max()
        losses.append(total.item())
    assert losses[0] == losses[1]


def test_a_head_that_is_nowhere_is_refused() -> None:
    """As of a model that is loaded in pieces, whose output embedding is on disk."""
    model = MAKE["qwen2 untied"](0, STUDENT_ROWS)
    model.lm_head.to("meta")
    with pytest.raises(ModelError, match="not a matrix"):
        _ = family_of(model, STUDENT_ROWS).head
