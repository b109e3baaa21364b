"""A label's cross-entropy beside that of the text after it: each a mean over its own tokens, whatever the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from potstill import recipe, weighting
from potstill.types import Batch
from tests import rollouts
from tests.rollouts import Given, data, padded, picked, step

SHARE = 0.9  # lambda
LABEL = {"objective": "cross_entropy", "name": "label", "weighting": {"name": "span", "stop": 1}}
REST = {"objective": "cross_entropy", "name": "rest", "weighting": {"name": "span", "start": 1}}
TEACHER = rollouts.gpt2(2)


def stream(label: float = SHARE, rest: float = 1 - SHARE) -> recipe.Stream:
    terms: list[dict[str, Any]] = [LABEL | {"coefficient": label}, REST | {"coefficient": rest}]
    return recipe.Stream.model_validate({"name": "data", "terms": terms})


def drawn() -> Batch:
    """Eight responses of 2 to 6 tokens with their ends."""
    (batch,) = data().next(rollouts.Share(8, 8), 0.0)
    return batch


def by_hand(student: Any, batch: Batch) -> Tensor:
    """lambda x the mean over first tokens + (1 - lambda) x the mean over all the others: one token at a time."""
    first: list[Tensor] = []
    rest: list[Tensor] = []
    for row in range(len(batch.example_ids)):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        response = batch.response_ids[row][batch.response_mask[row]]
        logits = student.model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        for at, token in enumerate(response.tolist()):
            (rest if at else first).append(torch.logsumexp(logits[at], 0) - logits[at, token])
    return SHARE * torch.stack(first).mean() + (1 - SHARE) * torch.stack(rest).mean()


def test_loss_and_gradient_are_those_of_a_loop_over_tokens() -> None:
    student = rollouts.gpt2(1)
    loss = by_hand(student, drawn())
    names, parameters = zip(*student.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    result, found = step(student, TEACHER, stream(), Given([drawn()]), size=8)
    assert result.loss == pytest.approx(loss.item(), rel=1e-12)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-13)


def test_each_term_has_its_own_name_in_the_figures_and_the_share_of_tokens_it_is_about() -> None:
    batch = drawn()
    result, _ = step(rollouts.gpt2(1), TEACHER, stream(), Given([batch]), size=8)
    assert set(result.values) == {"data/label", "data/rest"}
    share = 8 / batch.num_response_tokens
    assert result.selected == {"data/label": pytest.approx(share), "data/rest": pytest.approx(1 - share)}


def test_padding_and_micro_batches_change_nothing() -> None:
    batch = drawn()
    whole, gradient = step(rollouts.gpt2(1), TEACHER, stream(), Given([batch]), size=8)
    # Uneven on purpose: of short responses here, of long ones there, and much padding.
    lengths = batch.response_mask.sum(1).argsort().tolist()
    parts = [padded(picked(batch, lengths[:3]), 2, 7), padded(picked(batch, lengths[3:]), 0, 3)]
    split, other = step(rollouts.gpt2(1), TEACHER, stream(), Given(parts), size=8)
    assert split.values == pytest.approx(whole.values, rel=1e-12)
    for name, value in gradient.items():
        torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-13)


def test_the_rest_is_diluted_by_neither_padding_nor_the_label() -> None:
    """One coefficient 0 at a time: what is left is the other mean, and not the mean over all tokens."""
    batch = drawn()
    label, rest = (
        step(rollouts.gpt2(1), TEACHER, stream(a, b), Given([batch]), size=8)[0].loss for a, b in ((1, 0), (0, 1))
    )
    both = recipe.Stream.model_validate({"name": "data", "terms": [{"objective": "cross_entropy"}]})
    mean, _ = step(rollouts.gpt2(1), TEACHER, both, Given([batch]), size=8)
    tokens = batch.num_response_tokens
    assert mean.loss == pytest.approx((8 * label + (tokens - 8) * rest) / tokens, rel=1e-12)
    assert abs(label - rest) > 0.01  # otherwise the above would hold of anything


def test_a_span_is_of_each_response_from_its_own_start() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    assert weighting.span(mask, 0, 1).tolist() == [[1, 0, 0, 0]] * 3
    assert weighting.span(mask, 1, None).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]]
    assert weighting.span(mask, 1, 3).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]]


def test_a_batch_of_labels_alone_has_no_rest() -> None:
    """A mean over nothing is 0 and moves nothing."""
    batch = drawn()
    cut = Batch(
        batch.prompt_ids, batch.prompt_mask, batch.response_ids[:, :1], batch.response_mask[:, :1], batch.example_ids
    )
    result, _ = step(rollouts.gpt2(1), TEACHER, stream(), Given([cut]), size=8)
    assert result.values["data/rest"] == 0
    assert result.loss == pytest.approx(SHARE * result.values["data/label"])


def test_terms_that_could_not_be_told_apart_are_refused() -> None:
    nameless = [{key: value for key, value in term.items() if key != "name"} for term in (LABEL, REST)]
    for terms in (nameless, [LABEL, REST | {"name": "label"}]):
        with pytest.raises(ValidationError, match="Give one a name of its own"):
            recipe.Stream.model_validate({"terms": terms})
    assert recipe.Stream.model_validate({"terms": [nameless[0], REST]}).terms[0].label == "cross_entropy"


def test_an_empty_span_and_two_policy_gradients_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"holds no token\. Set stop above start"):
        recipe.SpanWeighting(start=2, stop=2)
    twice = [{"objective": "policy_gradient"}, {"objective": "policy_gradient", "name": "again"}]
    with pytest.raises(ValidationError, match="one policy gradient"):
        recipe.Stream.model_validate({"source": "rollout", "signal": "logits", "terms": twice})
