"""The chunked evaluator against a reference that materialises every logit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from potstill import objectives, recipe, weighting
from potstill.models.families import Causal
from potstill.objectives import chunked
from potstill.objectives.chunked import BoundTerm, evaluate_terms
from potstill.recipe import Term
from potstill.recipe.objectives import Reads
from potstill.teachers.local import LocalTeacher
from potstill.teachers.sparse import SparseTeacher
from potstill.types import Batch, Head, Live, StudentOutput
from tests import tiny

OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": objectives.cross_entropy,
    "smoothed": partial(objectives.cross_entropy, label_smoothing=0.2),
    "forward_kl": objectives.forward_kl,
    "reverse_kl": partial(objectives.reverse_kl, temperature=2.0),
    "jensen_shannon": objectives.jensen_shannon,
    # One nobody has written yet: the evaluator must not know the objectives.
    "squared_difference": lambda s, t: (s.softmax(-1) - t.softmax(-1)).square().sum(-1),
}
LENGTHS = [(3, 9), (7, 1), (1, 14), (5, 6)]


def bound(name: str, batch: Batch, coefficient: float = 1.0) -> BoundTerm:
    spec = Term.model_validate({"objective": "cross_entropy"})
    weight = weighting.uniform(batch.response_mask)
    scale = weighting.scales(spec, weight, weighting.denominator(spec, weight))
    reads: Reads = "tokens" if name in ("cross_entropy", "smoothed") else "teacher"
    return BoundTerm(name, OBJECTIVES[name], reads, coefficient, scale)


def reference(student: Causal, teacher: Causal, batch: Batch, terms: list[BoundTerm]) -> Tensor:
    """The same sum from the models' own logits, all at once."""

    def logits(model: Any, row: int) -> Tensor:
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        response = batch.response_ids[row][batch.response_mask[row]]
        whole = model(torch.cat([prompt, response])[None]).logits[0]
        return whole[len(prompt) - 1 : -1]

    total = torch.zeros((), dtype=student.model.dtype)
    for row in range(len(batch)):
        mask = batch.response_mask[row]
        for term in terms:
            with torch.no_grad():
                other = logits(teacher.model, row)
            against = other if term.reads == "teacher" else batch.response_ids[row][mask]
            total = (
                total
                + term.coefficient * (term.objective(logits(student.model, row), against) * term.scale[row][mask]).sum()
            )
    return total


def models(dtype: torch.dtype, *, tied: bool, frozen: bool = False) -> tuple[Causal, Causal]:
    student, teacher = Causal(tiny.llama(0, layers=2, tied=tied).to(dtype)), Causal(tiny.llama(1).to(dtype))
    if frozen:
        student.model.get_input_embeddings().requires_grad_(False)
    return student, teacher.requires_grad_(False)


def gradients(student: Causal, total: Tensor) -> dict[str, Tensor]:
    student.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
@pytest.mark.parametrize("tied", [True, False])
def test_equals_the_unchunked_reference(name: str, chunk_size: int, tied: bool) -> None:
    student, teacher = models(torch.float64, tied=tied)
    batch = tiny.batch(LENGTHS, extra_left=2, extra_right=3)
    terms = [bound(name, batch)]
    signal = Live(teacher(batch), teacher.head)
    total, values = evaluate_terms(student.output(batch), signal, batch, terms, chunk_size)
    expected = reference(student, teacher, batch, terms)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(values.sum(), expected.detach(), rtol=0, atol=1e-12)
    ours, theirs = gradients(student, total), gradients(student, expected)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-12, msg=key)


def test_equals_the_reference_in_float32() -> None:
    student, teacher = models(torch.float32, tied=True)
    batch = tiny.batch(LENGTHS)
    terms = [bound("forward_kl", batch), bound("cross_entropy", batch)]
    total, _ = evaluate_terms(student.output(batch), Live(teacher(batch), teacher.head), batch, terms, 5)
    expected = reference(student, teacher, batch, terms)
    assert abs(total.item() / expected.item() - 1) < 1e-6
    ours, theirs = gradients(student, total), gradients(student, expected)
    for key in theirs:
        assert (ours[key] - theirs[key]).norm() <= 1e-6 * theirs[key].norm() + 1e-7, key


def test_several_terms_share_one_projection_and_add_up() -> None:
    student, teacher = models(torch.float64, tied=True)
    batch = tiny.batch(LENGTHS)
    terms = [bound("forward_kl", batch, 0.3), bound("cross_entropy", batch, 0.7), bound("reverse_kl", batch, 0.0)]
    calls = []

    class CountedHead(Head):
        def linear(self, hidden: Tensor, room: Tensor | None = None) -> Tensor:
            calls.append(len(hidden))
            return super().linear(hidden, room)

    output = student.output(batch)
    counted = CountedHead(output.head.weight, None, None, output.head.vocab_size)
    total, values = evaluate_terms(
        StudentOutput(output.hidden, counted), Live(teacher(batch), teacher.head), batch, terms, chunk_size=8
    )
    torch.testing.assert_close(total, reference(student, teacher, batch, terms), rtol=0, atol=1e-12)
    torch.testing.assert_close(total.detach(), 0.3 * values[0] + 0.7 * values[1], rtol=0, atol=1e-14)
    assert values[2] > 0
    assert sum(calls) == batch.num_response_tokens  # each position reached the head once, padding never


def test_frozen_head_gets_no_gradient() -> None:
    student, teacher = models(torch.float64, tied=True, frozen=True)
    batch = tiny.batch(LENGTHS)
    total, _ = evaluate_terms(
        student.output(batch), Live(teacher(batch), teacher.head), batch, [bound("forward_kl", batch)]
    )
    found = gradients(student, total)
    assert found
    assert not any("embed_tokens" in key or "lm_head" in key for key in found)


def test_teacher_gets_no_gradient() -> None:
    student, _ = models(torch.float64, tied=True)
    teacher = Causal(tiny.llama(1).double())
    batch = tiny.batch(LENGTHS)
    total, _ = evaluate_terms(
        student.output(batch), Live(teacher(batch), teacher.head), batch, [bound("forward_kl", batch)]
    )
    total.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_padding_changes_nothing() -> None:
    student, teacher = models(torch.float64, tied=True)
    results = []
    for left, right in [(0, 0), (5, 0), (0, 5), (11, 3)]:
        batch = tiny.batch(LENGTHS, extra_left=left, extra_right=right)
        total, _ = evaluate_terms(
            student.output(batch), Live(teacher(batch), teacher.head), batch, [bound("forward_kl", batch)]
        )
        results.append((total.item(), gradients(student, total)))
    for value, grads in results[1:]:
        assert value == pytest.approx(results[0][0], abs=1e-13)
        for key, gradient in grads.items():
            torch.testing.assert_close(gradient, results[0][1][key], rtol=0, atol=1e-13)


def test_no_real_token_gives_zero_and_zero_gradient() -> None:
    student, teacher = models(torch.float64, tied=True)
    batch = tiny.batch([(3, 0), (2, 0)], extra_right=2)
    total, values = evaluate_terms(
        student.output(batch), Live(teacher(batch), teacher.head), batch, [bound("forward_kl", batch)]
    )
    assert total.item() == 0
    assert values.tolist() == [0]
    assert all((gradient == 0).all() for gradient in gradients(student, total).values())


def test_no_real_token_is_no_response_either() -> None:
    student, teacher = models(torch.float64, tied=True)
    batch = tiny.batch([(3, 0), (2, 0)], extra_right=2)
    term = replace(bound("cross_entropy", batch), objective=objectives.embedding_similarity, reads="response")
    total, values = evaluate_terms(student.output(batch), None, batch, [term])
    assert total.item() == values.item() == 0
    form = recipe.TopKSignal(k=3)
    said = SparseTeacher(LocalTeacher(teacher), form, seed=1).signal(batch)
    assert said.ids.shape == (2, 2, 3)


def test_values_need_no_gradient_to_be_computed() -> None:
    student, teacher = models(torch.float64, tied=True)
    batch = tiny.batch(LENGTHS)
    terms = [bound("forward_kl", batch)]
    with torch.no_grad():
        total, _ = evaluate_terms(student.output(batch), Live(teacher(batch), teacher.head), batch, terms)
    assert not total.requires_grad
    torch.testing.assert_close(total, reference(student, teacher, batch, terms).detach(), rtol=0, atol=1e-12)


def test_a_term_that_compares_needs_a_signal() -> None:
    student, _ = models(torch.float64, tied=True)
    batch = tiny.batch(LENGTHS)
    with pytest.raises(ValueError, match="forward_kl compares with a teacher"):
        evaluate_terms(student.output(batch), None, batch, [bound("forward_kl", batch)])


def test_objectives_see_blocks_of_a_chunk_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = models(torch.float64, tied=True)
    batch = tiny.batch(LENGTHS)
    terms = [bound("forward_kl", batch)]
    monkeypatch.setattr(chunked, "CPU_BLOCK", 3 * tiny.VOCAB)
    seen = []
    watched = replace(terms[0], objective=lambda s, t: seen.append(len(s)) or objectives.forward_kl(s, t))  # type: ignore[func-returns-value]
    total, _ = evaluate_terms(student.output(batch), Live(teacher(batch), teacher.head), batch, [watched], 7)
    torch.testing.assert_close(total, reference(student, teacher, batch, terms), rtol=0, atol=1e-12)
    assert seen == [3, 3, 1] * 4 + [2]


def test_a_position_that_only_another_term_counts_is_left_out() -> None:
    """Something infinite there must not meet a scale of 0."""
    student, _ = models(torch.float64, tied=True)
    batch = tiny.batch([(3, 4)])
    everywhere = bound("cross_entropy", batch)
    scale = everywhere.scale.clone()
    scale[0, 1] = 0
    shunned = batch.response_ids[0, 1]
    choosy = replace(
        everywhere, scale=scale, objective=lambda s, ids: torch.where(ids == shunned, torch.inf, 1.0) * s.sum(-1)
    )
    total, values = evaluate_terms(student.output(batch), None, batch, [everywhere, choosy])
    assert values.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(student, total).values())


def test_the_gradient_is_handed_over_once() -> None:
    student, teacher = models(torch.float64, tied=True)
    batch = tiny.batch(LENGTHS)
    total, _ = evaluate_terms(
        student.output(batch), Live(teacher(batch), teacher.head), batch, [bound("forward_kl", batch)]
    )
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call backward once"):
        total.backward()


@pytest.mark.parametrize("scale", [1.0, -2.5])
def test_a_head_with_a_bias_and_padded_rows_and_a_scaled_total(scale: float) -> None:
    """What no tiny family has at once: a bias, rows that are cut, and a loss that is multiplied before backward."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((24, 6), (24,)))
    hidden, other = (torch.randn(4, 14, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    batch = replace(tiny.batch(LENGTHS), response_ids=tiny.batch(LENGTHS).response_ids % 20)
    teacher = Live(other, Head(weight.flip(0), bias.flip(0), None, 20))
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    output = StudentOutput(leaves[0], Head(leaves[1], leaves[2], None, 20))
    terms = [bound("forward_kl", batch), bound("cross_entropy", batch, 0.5)]
    total, _ = evaluate_terms(output, teacher, batch, terms, chunk_size=5)
    found = torch.autograd.grad(scale * total, leaves)

    plain = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    mask = batch.response_mask
    s = (plain[0][mask] @ plain[1].T + plain[2])[:, :20]
    t = (other[mask] @ weight.flip(0).T + bias.flip(0))[:, :20]
    each = objectives.forward_kl(s, t) + 0.5 * objectives.cross_entropy(s, batch.response_ids[mask])
    expected = torch.autograd.grad(scale * (each * terms[0].scale[mask]).sum(), plain)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert (found[1][20:] == 0).all()
    assert (found[2][20:] == 0).all()


@pytest.mark.parametrize("by_response", [False, True])
def test_chunks_of_any_length_share_their_room(by_response: bool) -> None:
    """Logits are written over those of the chunk before, also where responses make chunks shorter and longer."""
    student, teacher = models(torch.float64, tied=True)
    batch = tiny.batch(LENGTHS)
    signal = LocalTeacher(teacher).signal(batch)
    terms = [bound("forward_kl", batch)]
    if by_response:
        terms.append(replace(bound("cross_entropy", batch), objective=lambda s, *_: s.logsumexp(-1), reads="response"))
    results = []
    for chunk_size in (2, 7, 1000):
        total, values = evaluate_terms(student.output(batch), signal, batch, terms, chunk_size)
        results.append((values, gradients(student, total)))
    for values, found in results[:-1]:
        torch.testing.assert_close(values, results[-1][0], rtol=0, atol=1e-12)
        torch.testing.assert_close(found, results[-1][1], rtol=0, atol=1e-12)


def test_a_teachers_logits_are_made_of_a_few_positions_at_a_time() -> None:
    """Fewer than its student's, whose chunk is as long as the head's gradient wants it; a plan counts them so."""
    student, teacher = models(torch.float64, tied=True)
    batch, made = tiny.batch([(4, 200)] * 2), []

    def noted(scores: Tensor) -> Tensor:
        made.append(len(scores))
        return scores

    signal = Live(teacher(batch), replace(teacher.head, transform=noted))
    evaluate_terms(student.output(batch), signal, batch, [bound("forward_kl", batch)])
    assert made == [128, 128, 128, 16]


class Largest(TorchDispatchMode):
    """Notes the most elements of a tensor that any operation gives, of those that take memory of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = function(*args, **(kwargs or {}))
        for one in given if isinstance(given, tuple | list) else [given]:
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.untyped_storage().nbytes() // one.element_size())
        return given


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_tensor_of_a_step_is_as_large_as_all_logits(name: str) -> None:
    """Forward and backward of both models and the loss, on three times as many tokens as a chunk has."""
    student, teacher = models(torch.float32, tied=True)
    batch = tiny.batch([(4, 200)] * 4)
    with Largest() as largest:
        signal = LocalTeacher(teacher).signal(batch) if bound(name, batch).reads == "teacher" else None
        total, _ = evaluate_terms(student.output(batch), signal, batch, [bound(name, batch)])
        total.backward()
    assert largest.numel == chunked.MIN_CHUNK * tiny.VOCAB  # the logits of a chunk, and nothing beside them
    assert batch.num_response_tokens * tiny.VOCAB > 3 * largest.numel
    with Largest() as whole:
        student.head(student(batch))
    assert whole.numel == batch.response_ids.numel() * tiny.VOCAB  # and it is seen where they are made
