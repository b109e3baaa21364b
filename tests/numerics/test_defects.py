"""Every defect found in public distillation code that applies here, by name: what it was, and that it is not ours.

``REGISTER`` lists them all by the file of the test that guards each: here, or where its subject is.
"""

from __future__ import annotations

import ast
import math
from functools import cache, partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from potstill import objectives, recipe
from potstill.models.families import Causal
from potstill.objectives import sparse
from potstill.objectives.chunked import BoundTerm, evaluate_terms
from potstill.types import Live
from tests import tiny
from tests.numerics.table import CASES, gradient, logits

TESTS = Path(__file__).parents[1]
S, T = logits(60, 80, 9), logits(61, 80, 9)

REGISTER = {
    "numerics/test_defects.py": {
        "forward KL that is a cross-entropy (distillm, ABKD, TAID)": "test_forward_kl_keeps_the_teachers_entropy",
        "alpha-beta limits off by a factor (ABKD)": "test_alpha_beta_limits_carry_the_square",
        "adaptive KL: sorted mask on unsorted gaps (TAID)": "test_adaptive_kl_sorts_both_sides",
        "adaptive KL: gradient through the weights (TAID)": "test_adaptive_kl_weights_are_constant",
        "adaptive KL: 0 / 0 at agreement": "test_adaptive_kl_is_finite_at_agreement",
        "methods whose names lead nowhere (distillm HEAD, AdaKD)": "test_every_name_leads_to_its_function",
        "student detached inside its own mixture (DistiLLM-2)": (
            "test_skew_reverse_kl_sends_gradient_through_both_students"
        ),
        "a loss with the wrong sign (DistiLLM-2)": "test_no_divergence_is_negative",
        "mean over batch and classes (TAKD)": "test_neither_batch_nor_vocabulary_divides_the_loss",
        "softmax taken twice (S4)": "test_probabilities_are_not_taken_for_logits",
        "Jensen-Shannon with its arguments swapped (S4)": "test_jensen_shannon_measures_from_the_models_to_the_mixture",
        "labels against unshifted logits (S4, seed PG-KD)": "test_a_state_predicts_the_token_after_it",
        "end of sequence lost where it is the pad (MiniLLM code, TRL)": (
            "test_an_end_token_that_is_also_the_pad_is_trained_once"
        ),
        "fused loss that is another loss: soft cap, scale (TRL, ms-swift)": (
            "test_the_chunked_loss_knows_soft_cap_scale_and_temperature"
        ),
        "a clamp that hides the loss (verl)": "test_nothing_clamps_a_large_loss",
        "vocabulary filled up with zeros or the other model's logits (Liger, ms-swift)": (
            "test_rows_that_only_one_model_has_are_cut_and_not_filled"
        ),
        "negative Jensen-Shannon in bfloat16 (ms-swift)": "test_no_divergence_is_negative",
    },
    "numerics/test_seq2seq_defects.py": {
        "one decoder position broadcast to the whole response (S0)": (
            "test_each_response_token_is_scored_at_its_own_position"
        ),
        "double shift, encoder mask on decoder log-probabilities (S0)": (
            "test_nothing_is_shifted_twice_and_the_prompts_mask_is_none_of_the_responses"
        ),
        "start tokens and separators among the labels (S0)": (
            "test_what_was_written_is_what_is_trained_on_token_for_token"
        ),
        "the student's encoder output given to the teacher (S0, LMOps 99)": (
            "test_a_teacher_reads_the_prompt_with_its_own_encoder"
        ),
    },
    "numerics/test_sequence_credit.py": {
        "current reward counted twice (MiniLLM code)": (
            "test_minillm_public_code_defect_the_current_reward_counts_twice"
        ),
        "discount 0 beside the single-step term (TRL MiniLLM)": (
            "test_trl_minillm_defect_discount_0_beside_the_single_step_term_doubles_it"
        ),
        "discount by absolute position (TRL MiniLLM)": "test_trl_minillm_defect_the_discount_goes_by_distance",
        "whitening that counts padding (MiniLLM code)": "test_whitening_ignores_padding",
        "advantages that depend on the prompt's length (TRL MiniLLM)": "test_prompts_and_padding_change_nothing",
        "end of sequence lost from the rewards": "test_a_pad_id_equal_to_the_end_id_does_not_hide_the_end",
    },
    "numerics/test_divergences.py": {
        "jump of the scale at the ends of Jensen-Shannon (TRL GKD, ms-swift)": (
            "test_rescaled_jensen_shannon_is_continuous_from_forward_to_reverse_kl"
        ),
        "temperature without its square (DSKD)": "test_high_temperature_is_logit_matching",
        "temperature set and not used (TRL GKD)": "test_temperature_divides_both_models_logits",
        "infinite terms deleted without a word (inf_mask)": (
            "test_infinite_exactly_where_the_student_excludes_what_the_teacher_does_not"
        ),
        "gradient that does not depend on the teacher (areno-opd, miles)": (
            "test_never_negative_below_its_bound_and_changes_with_the_teacher"
        ),
        "order of the vocabulary matters (TAID)": "test_invariances",
    },
    "numerics/test_estimators.py": {
        "k3 as a loss (TorchRL)": "test_torchrl_defect_k3_as_a_loss_on_student_samples_is_forward_kl",
        "k1 as a loss: a gradient without a teacher (areno-opd)": (
            "test_areno_opd_defect_k1_as_a_loss_has_no_gradient_on_average"
        ),
        "importance weights near zero (seed PG-KD)": "test_seed_pg_kd_defect_weights_are_one_where_the_models_agree",
    },
    "numerics/test_cross_tokenizer.py": {
        "cross-tokenizer rows off by one (GOLD)": (
            "test_a_student_that_is_its_teacher_has_no_loss_unless_rows_are_off_by_one"
        ),
    },
    "numerics/test_regularisers.py": {
        "entropy of log-probabilities (S4)": "test_entropy_of_log_probabilities_as_in_public_code_is_not_a_number",
        "repetition penalty without a gradient, sign reversed (S4)": (
            "test_unlikelihood_has_a_gradient_that_lowers_what_was_seen"
        ),
        "diversity that is a constant (S4)": (
            "test_embedding_similarity_has_a_gradient_that_makes_a_response_more_varied"
        ),
    },
    "numerics/test_features.py": {
        "Barlow weights swapped (S1)": "test_the_small_weight_is_off_the_diagonal",
    },
    "unit/test_weighting.py": {
        "token mean for sequence mean and back": "test_the_two_reductions_of_four_tokens_and_one",
    },
    "contract/test_terms.py": {
        "mean of means over micro-batches (TRL, ms-swift, Soup)": "test_layout_changes_nothing",
        "padding in the loss (TRL, optipfair)": "test_layout_changes_nothing",
    },
    "distributed/test_ddp.py": {
        "mean of means over processes": "test_two_processes_equal_one_to_1e9_in_float64",
    },
    "numerics/test_sparse.py": {
        "top k renormalised over itself (ms-swift, distill-anything)": "test_one_listed_token_still_has_a_gradient",
        "top k as an unbiased target": "test_a_top_k_renormalised_is_biased_by_the_missing_mass_and_draws_are_not",
        "teacher scored at another temperature (slime)": "test_another_temperature_than_it_was_made_at_is_refused",
    },
    "e2e/test_own_trainer.py": {
        "private hooks of an old trainer (DistillKit, DSS, MiniLLM)": "test_the_example_trains_and_writes_a_student",
    },
}


@cache
def names(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in REGISTER for name in REGISTER[file].values()])
def test_each_defect_has_its_test(file: str, name: str) -> None:
    assert name in names(file)


# --- Divergences ------------------------------------------------------------------------------------------------------


def test_forward_kl_keeps_the_teachers_entropy() -> None:
    p = T.softmax(-1)
    cross = -(p * S.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(objectives.forward_kl(S, T), cross + (p * p.log()).sum(-1), rtol=0, atol=1e-12)
    skewed = -(p * (0.1 * p + 0.9 * S.softmax(-1)).log()).sum(-1)
    torch.testing.assert_close(objectives.skew_forward_kl(S, T), skewed + (p * p.log()).sum(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("power", [0.5, 0.7])
def test_alpha_beta_limits_carry_the_square(power: float) -> None:
    """The public branches divide by the power and not by its square: half the limit at 0.5, 0.7 of it at 0.7."""
    p, q = T.softmax(-1), S.softmax(-1)
    public = ((q**power) * (q**power / p**power).log() - q**power + p**power).sum(-1) / power
    found = objectives.alpha_beta(S, T, alpha=0.0, beta=power)
    torch.testing.assert_close(public / found, torch.full((80,), power, dtype=torch.float64), rtol=1e-9, atol=0)
    near = objectives.alpha_beta(S, T, alpha=1e-7, beta=power)
    torch.testing.assert_close(found, near, rtol=1e-5, atol=0)


def public_adaptive_kl(s: Tensor, t: Tensor) -> Tensor:
    """The mask of the sorted order laid over gaps in the vocabulary's order."""
    p, q = t.softmax(-1), s.softmax(-1)
    head = p.sort(-1, descending=True).values.cumsum(-1) <= 0.5
    gaps = (p - q).abs()
    w = (gaps * head).sum(-1) / gaps.sum(-1)
    return w * objectives.forward_kl(s, t) + (1 - w) * objectives.reverse_kl(s, t)


def test_adaptive_kl_sorts_both_sides() -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    there, here = public_adaptive_kl(S[:, order], T[:, order]), public_adaptive_kl(S, T)
    assert (there - here).abs().max() > 0.05  # relabelling the vocabulary changes the public form
    relabelled = objectives.adaptive_kl(S[:, order], T[:, order])
    torch.testing.assert_close(relabelled, objectives.adaptive_kl(S, T), rtol=0, atol=1e-12)


def test_adaptive_kl_weights_are_constant() -> None:
    parts = [gradient(f, S, T) for f in (objectives.forward_kl, objectives.reverse_kl)]
    found = gradient(objectives.adaptive_kl, S, T)
    # One weight in [0, 1] explains every entry of a position's gradient.
    weight = ((found - parts[1]) * (parts[0] - parts[1])).sum(-1) / (parts[0] - parts[1]).square().sum(-1)
    torch.testing.assert_close(found, weight[:, None] * parts[0] + (1 - weight[:, None]) * parts[1], rtol=0, atol=1e-12)
    assert ((weight > 0) & (weight < 1)).all()


def test_adaptive_kl_is_finite_at_agreement() -> None:
    assert (objectives.adaptive_kl(S, S.clone()) == 0).all()
    assert gradient(objectives.adaptive_kl, S, S.clone()).isfinite().all()


def test_every_name_leads_to_its_function() -> None:
    for section in get_args(recipe.AnyObjective):
        assert callable(getattr(objectives, section().name))
        assert recipe.Term.model_validate({"objective": section().name}).objective == section()


def test_skew_reverse_kl_sends_gradient_through_both_students() -> None:
    q, p = S.softmax(-1), T.softmax(-1)
    m = 0.9 * p + 0.1 * q
    ratio = (q / m).log()
    detached = q * (ratio - (q * ratio).sum(-1, keepdim=True))  # as if m knew nothing of the student
    h = ratio + 1 - 0.1 * q / m
    found = gradient(objectives.skew_reverse_kl, S, T)
    torch.testing.assert_close(found, q * (h - (q * h).sum(-1, keepdim=True)), rtol=0, atol=1e-12)
    assert (found - detached).abs().max() > 1e-3


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_divergence_is_negative(name: str, dtype: torch.dtype) -> None:
    """Models that nearly agree, over a real vocabulary: where rounding shows first. Its size is that of float32."""
    generator = torch.Generator().manual_seed(1)
    t = 3 * torch.randn(32, 32_000, generator=generator)
    s = t + 1e-3 * torch.randn(32, 32_000, generator=generator)
    assert CASES[name].function(s.to(dtype), t.to(dtype)).min() > -1e-6
    assert CASES[name].function(3 * torch.randn(32, 32_000, generator=generator).to(dtype), t.to(dtype)).min() > 0


def test_neither_batch_nor_vocabulary_divides_the_loss() -> None:
    """A mean over batch and classes makes the loss a hundredth with a hundred classes."""
    for name, case in CASES.items():
        twice = case.function(torch.cat([S, S]), torch.cat([T, T]))
        torch.testing.assert_close(twice[:80], case.function(S, T), rtol=1e-12, atol=1e-14, msg=name)
        if "uniform" in str(getattr(case.function, "keywords", {})):
            continue  # weighs every token of the vocabulary, likely or not
        impossible = torch.full((80, 91), -200.0, dtype=torch.float64)
        wide = case.function(torch.cat([S, impossible], -1), torch.cat([T, impossible], -1))
        if not case.negative_power and name != "alpha_beta_0_0":
            torch.testing.assert_close(wide, case.function(S, T), rtol=1e-6, atol=1e-9, msg=name)


def test_probabilities_are_not_taken_for_logits() -> None:
    twice = objectives.forward_kl(S.softmax(-1), T)
    assert (twice - objectives.forward_kl(S, T)).abs().max() > 0.1
    close_logits, far_logits = T + 0.01 * S, S
    assert objectives.forward_kl(close_logits, T).max() < 0.01 * objectives.forward_kl(far_logits, T).max()


def test_jensen_shannon_measures_from_the_models_to_the_mixture() -> None:
    p, q = T.softmax(-1), S.softmax(-1)
    m = (p + q) / 2
    swapped = ((m * (m / p).log()).sum(-1) + (m * (m / q).log()).sum(-1)) / 2
    found = objectives.jensen_shannon(S, T)
    assert found.max() < math.log(2)
    assert swapped.max() > math.log(2)  # what has no bound is not a Jensen-Shannon divergence


# --- From tokens to the loss ------------------------------------------------------------------------------------------


def term(objective: partial[Tensor], reads: recipe.objectives.Reads, scale: Tensor) -> BoundTerm:
    return BoundTerm("x", objective, reads, 1.0, scale)


def test_a_state_predicts_the_token_after_it() -> None:
    student = Causal(tiny.llama(0).double())
    batch = tiny.batch([(4, 6)])
    scale = batch.response_mask.double() / 6
    total, _ = evaluate_terms(
        student.output(batch), None, batch, [term(partial(objectives.cross_entropy), "tokens", scale)]
    )
    ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)
    labels = ids.clone()
    labels[:, :4] = -100
    theirs = student.model(input_ids=ids, labels=labels).loss  # the model's own shifted loss
    assert total.item() == pytest.approx(theirs.item(), rel=1e-6)  # theirs is computed in float32


def test_an_end_token_that_is_also_the_pad_is_trained_once() -> None:
    """Masks made from ids leave the end out, or train every pad; ours are made from lengths."""
    from potstill.data.collate import collate
    from potstill.data.examples import Tokenised

    end = 0  # the tiny models' pad, beginning and end
    student = Causal(tiny.llama(0).double())
    rows = [
        Tokenised("a", (5, 6, 7), (8, 9, end), "", "", False),
        Tokenised("b", (5, 6), (8, 9, 10, 11, 12, end), "", "", False),
    ]
    batch = collate(rows, pad_id=end)
    assert batch.response_mask.sum(1).tolist() == [3, 6]
    hidden = student(batch).detach().requires_grad_()
    scale = batch.response_mask.double()
    output = student.output(batch)
    total, _ = evaluate_terms(
        type(output)(hidden, output.head), None, batch, [term(partial(objectives.cross_entropy), "tokens", scale)]
    )
    (received,) = torch.autograd.grad(total, hidden)
    assert (received.abs().sum(-1) > 0).tolist() == batch.response_mask.tolist()


@pytest.mark.parametrize("transform", [lambda x: 30 * torch.tanh(x / 30), lambda x: 0.25 * x], ids=["cap", "scale"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_chunked_loss_knows_soft_cap_scale_and_temperature(transform: object, temperature: float) -> None:
    from dataclasses import replace

    student, teacher = Causal(tiny.llama(0).double()), Causal(tiny.llama(1).double())
    batch = tiny.batch([(3, 9), (5, 4)])
    mask = batch.response_mask
    head = replace(student.output(batch).head, transform=transform)  # type: ignore[arg-type]
    hidden = student(batch).detach().requires_grad_()
    divergence = partial(objectives.skew_forward_kl, temperature=temperature)
    signal = Live(teacher(batch).detach(), teacher.head)
    output = type(student.output(batch))(hidden, head)
    total, _ = evaluate_terms(output, signal, batch, [term(divergence, "teacher", mask.double())], 4)
    expected = divergence(transform(hidden[mask] @ head.weight.T), teacher.head(signal.hidden[mask])).sum()  # type: ignore[operator]
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    ours, theirs = (torch.autograd.grad(x, hidden)[0] for x in (total, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_nothing_clamps_a_large_loss() -> None:
    far = 500 * torch.eye(4, dtype=torch.float64)
    assert (objectives.forward_kl(far, far.roll(1, 0)) > 499).all()
    assert gradient(objectives.forward_kl, far, far.roll(1, 0)).abs().max() == pytest.approx(1.0)
    assert objectives.reverse_kl(far, sparse.top_k(far.roll(1, 0), 2)).min() > 300


def test_rows_that_only_one_model_has_are_cut_and_not_filled() -> None:
    """Filled with zeros they draw probability; filled with the other model's logits they fake agreement."""
    student, teacher = Causal(tiny.llama(0).double(), 290), Causal(tiny.llama(1, tied=False).double(), 290)
    batch = tiny.batch([(3, 5)])
    s, t = student.head(student(batch)), teacher.head(teacher(batch))
    assert s.shape[-1] == t.shape[-1] == 290
    full = teacher.model.lm_head(teacher(batch))
    torch.testing.assert_close(t, full[..., :290], rtol=0, atol=1e-14)
    filled = objectives.forward_kl(torch.nn.functional.pad(s, (0, 10)), full)
    assert (filled - objectives.forward_kl(s, t)).abs().max() > 1e-3
