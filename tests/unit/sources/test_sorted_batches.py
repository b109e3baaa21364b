"""Micro-batches of rows of like length: what a global batch has, its loss and its gradient stay as they are."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from potstill import recipe
from potstill.data.examples import Tokenised
from potstill.sources.dataset import DatasetSource, batches, longest_first
from potstill.sources.source import Share
from potstill.training.step import LiveStream, train_step
from potstill.training.terms import LiveTerm
from potstill.types import Batch
from tests import rollouts
from tests.rollouts import VOCAB, Given, step


def rows(count: int = 24) -> list[Tokenised]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for at in range(count):
        prompt, response = (int(length) for length in torch.randint(1, 9, (2,), generator=generator))
        ids = torch.randint(1, VOCAB, (prompt + response,), generator=generator).tolist()
        made.append(Tokenised(f"row:{at}", tuple(ids[:prompt]), tuple(ids[prompt:]), "", "", truncated=False))
    return made


def source() -> DatasetSource:
    return DatasetSource(rows(), seed=1, pad_id=0)


def padding(drawn: list[Batch]) -> int:
    return sum(len(batch) * longest(batch) - batch.num_tokens for batch in drawn)


def longest(batch: Batch) -> int:
    return int((batch.prompt_mask.sum(1) + batch.response_mask.sum(1)).max())


def test_a_global_batch_has_the_rows_that_are_drawn_the_longest_first() -> None:
    drawn, sorted_ones = source().draw(Share(12, 3)), source().next(Share(12, 3))
    assert Counter(row.example_id for row in drawn) == Counter(name for one in sorted_ones for name in one.example_ids)
    assert [longest(one) for one in sorted_ones] == sorted((longest(one) for one in sorted_ones), reverse=True)
    assert 2 * padding(sorted_ones) < padding(list(batches(drawn, 3, 0)))


def test_rows_stay_as_they_are_drawn_where_they_may_not_be_sorted() -> None:
    share = Share(12, 3, by_length=False)
    drawn = [row.example_id for row in source().draw(share)]
    assert [name for batch in source().next(share) for name in batch.example_ids] == drawn


@pytest.mark.parametrize(("objective", "in_order"), [("hidden_cosine", True), ("hidden_correlation", False)])
def test_what_goes_by_the_rows_of_a_micro_batch_is_given_them_as_they_are_drawn(objective: str, in_order: bool) -> None:
    seen: list[Share] = []

    class Asked(Given):
        def next(self, share: Share, progress: float) -> list[Batch]:
            seen.append(share)
            return super().next(share, progress)

    term = {"objective": {"name": objective, "channels": "all"}}
    stream = recipe.Stream.model_validate({"name": "data", "signal": "logits", "terms": [term]})
    live = LiveStream(stream, Asked([]), None, (LiveTerm("data", stream.terms[0]),))
    batching = recipe.Batching(size=4, micro_size=2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.0)
    student = rollouts.gpt2(1)
    train_step(student, student, optimizer, [live], batching, 1.0, rollouts.RUNTIME, progress=0.0, dropped=["data"])
    assert [share.by_length for share in seen] == [in_order]


def test_one_micro_batch_has_its_rows_as_they_are_drawn() -> None:
    (batch,) = source().next(Share(12, 12))
    assert batch.example_ids == tuple(row.example_id for row in source().draw(Share(12, 12)))


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_row_comes_once_an_epoch(world_size: int) -> None:
    seen: Counter[str] = Counter()
    for rank in range(world_size):
        drawing = source()
        for _ in range(2):
            for batch in drawing.next(Share(12, 2, rank, world_size)):
                seen.update(batch.example_ids)
    assert seen == Counter(row.example_id for row in rows())


def test_each_process_sorts_its_own_rows_alone() -> None:
    for rank in range(2):
        share = Share(12, 2, rank, 2)
        own = {row.example_id for row in source().draw(share)}
        assert {name for batch in source().next(share) for name in batch.example_ids} == own


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_loss_and_gradient_are_those_of_rows_as_they_are_drawn(reduction: str) -> None:
    student, teacher = rollouts.gpt2(1), rollouts.gpt2(2)
    terms = [{"objective": "forward_kl", "reduction": reduction}, {"objective": "cross_entropy", "coefficient": 0.5}]
    stream = recipe.Stream.model_validate({"name": "data", "signal": "logits", "terms": terms})
    drawn = source().draw(Share(12, 3))
    told = []
    for given in (list(batches(drawn, 3, 0)), list(batches(longest_first(drawn), 3, 0))):
        told.append(step(student, teacher, stream, Given(given), size=12, micro_size=3))
    (expected, wanted), (found, gradient) = told
    assert found.loss == pytest.approx(expected.loss, abs=1e-10)
    assert gradient.keys() == wanted.keys()
    assert max(one.abs().max() for one in wanted.values()) > 1e-3
    for name, one in wanted.items():
        torch.testing.assert_close(gradient[name], one, rtol=1e-10, atol=1e-10)
