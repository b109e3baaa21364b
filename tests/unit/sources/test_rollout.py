"""What the student writes: which responses, in which batches, with which weights, and what a checkpoint keeps of it."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
import torch

from potstill import recipe
from potstill.sources.rollout import RolloutSource
from potstill.sources.source import Share
from potstill.types import Batch
from tests import rollouts
from tests.rollouts import END, flat, same, spec

STUDENT, TEACHER = rollouts.gpt2(1), rollouts.gpt2(2)
SHARE = Share(4, 2)
MIXED = {"policy": {"name": "token_mixed", "teacher_share": 0.4}}


def source(seed: int = 7, **settings: Any) -> RolloutSource:
    return rollouts.rollouts(STUDENT, TEACHER, spec(**settings), seed=seed)


def drawn(of: RolloutSource, count: int, share: Share = SHARE) -> list[list[Batch]]:
    return [of.next(share, 0.0) for _ in range(count)]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_seed_settles_what_is_written() -> None:
    first, again, other = (drawn(source(seed), 3) for seed in (7, 7, 8))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert [flat(batch) for batch in first] != [flat(batch) for batch in other]


def test_prompts_come_in_the_datas_order_and_a_prompt_that_comes_again_gets_another_response() -> None:
    found = [row for batch in drawn(source(), 6) for row in flat(batch)]  # 24 rows of 12 prompts
    expected = [row.example_id for _ in range(6) for row in (DATA.draw(SHARE))]
    assert [name for name, _ in found] == [f"{name}#{place}" for place, name in enumerate(expected)]
    by_prompt: dict[str, list[list[int]]] = {}
    for name, ids in found:
        by_prompt.setdefault(name.split("#")[0], []).append(ids)
    assert all(len(responses) == 2 for responses in by_prompt.values())
    assert sum(first != second for first, second in by_prompt.values()) > 6


DATA = rollouts.data()


def test_no_two_places_share_a_draw() -> None:
    """One prompt, again and again."""
    of = rollouts.rollouts(STUDENT, TEACHER, spec(), credit=None, prompts=rollouts.data(1))
    found = {str(ids) for batch in drawn(of, 10) for _, ids in flat(batch)}
    assert len(found) > 20


def test_the_order_is_a_new_one_for_each_rollout() -> None:
    """Nine rollouts of five batches: their second orders, by the place of each batch's first row."""
    of = rollouts.rollouts(
        STUDENT, TEACHER, spec(batches_per_rollout=5, num_updates_per_batch=2, max_new_tokens=1), credit=None
    )
    orders = set()
    for _ in range(9):
        names = [[flat(batch)[0][0] for batch in drawn(of, 5)] for _ in range(2)]
        orders.add(str([names[0].index(name) for name in names[1]]))
    assert len(orders) > 6


@pytest.mark.parametrize("settings", [{}, MIXED, {"policy": "speculative", "batches_per_rollout": 3}])
def test_processes_and_micro_batches_do_not_change_what_is_written(settings: dict[str, Any]) -> None:
    whole = [sorted(flat(batch)) for batch in drawn(source(**settings), 4)]
    for micro_size in (1, 2, 4):
        assert [sorted(flat(batch)) for batch in drawn(source(**settings), 4, Share(4, micro_size))] == whole
    parts = [drawn(source(**settings), 4, Share(4, 2, rank, 2)) for rank in (0, 1)]
    assert [sorted(flat(a) + flat(b)) for a, b in zip(*parts, strict=True)] == whole


def test_it_is_the_student_of_the_moment_who_writes() -> None:
    changing = rollouts.gpt2(1)
    of = rollouts.rollouts(changing, TEACHER, spec(batches_per_rollout=2))
    still = drawn(source(batches_per_rollout=2), 4)
    before = drawn(of, 1)
    changing.model.load_state_dict(rollouts.gpt2(5).model.state_dict())
    assert same([*before[0], *of.next(SHARE, 0.0)], [*still[0], *still[1]])  # the rollout that was begun
    later = rollouts.rollouts(rollouts.gpt2(5), TEACHER, spec(batches_per_rollout=2))
    assert [flat(batch) for batch in drawn(of, 2)] == [flat(batch) for batch in drawn(later, 4)[2:]]


def test_a_response_ends_in_the_end_token_or_is_cut() -> None:
    rows = [ids for batch in drawn(source(), 5) for _, ids in flat(batch)]
    assert all(rollouts.END not in ids[:-1] for ids in rows)
    assert all(len(ids) == rollouts.LONGEST for ids in rows if ids[-1] != rollouts.END)
    ended = sum(ids[-1] == rollouts.END for ids in rows)
    assert 0 < ended < len(rows)


def test_each_batch_is_used_as_often_as_asked_and_in_a_new_order_each_time() -> None:
    of = source(batches_per_rollout=4, num_updates_per_batch=3)
    batches = drawn(of, 12)
    first = batches[:4]
    orders = [
        [next(i for i, b in enumerate(first) if same(b, batch)) for batch in batches[at : at + 4]] for at in (0, 4, 8)
    ]
    assert orders[0] == [0, 1, 2, 3]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert orders[1] != orders[2]
    assert orders[1:] != [[0, 1, 2, 3]] * 2
    fresh = {name for batch in drawn(of, 4) for name, _ in flat(batch)}
    assert not fresh & {name for batch in first for name, _ in flat(batch)}
    figures = of.figures()
    assert figures["age"] == 3.0
    assert "writing_s" not in figures  # it was told at the rollout's first batch
    assert 0 < figures["finished_share"] < 1
    assert 1 <= figures["response_tokens"] <= rollouts.LONGEST
    assert "corrected_share" not in figures


def test_a_corrected_rollout_tells_the_share_of_its_tokens_that_were_corrected() -> None:
    shares = []
    for top_k in (rollouts.VOCAB, 3, 1):
        of = source(policy={"name": "speculative", "top_k": top_k})
        drawn(of, 1)
        shares.append(of.figures()["corrected_share"])
    assert 0 == shares[0] < shares[1] < shares[2] < 1


@pytest.mark.parametrize(
    "policy",
    [
        {"name": "student"},
        {"name": "token_mixed", "teacher_share": 0.4},
        {"name": "token_mixed", "teacher_share": 0.3, "mix": "logits"},
        {"name": "speculative", "top_k": 3},
    ],
)
def test_importance_weights_are_the_students_probability_over_the_writers(policy: dict[str, Any]) -> None:
    prompts = {row.example_id: row.prompt_ids for row in rollouts.rows()}
    for batch in source(policy=policy, temperature=0.8).next(Share(12, 12), 0.0):
        assert batch.importance_weights is not None
        assert (batch.importance_weights[~batch.response_mask] == 1).all()
        for row, (name, ids) in enumerate(flat([batch])):
            expected = weights(policy, prompts[name.split("#")[0]], ids)
            torch.testing.assert_close(batch.importance_weights[row, : len(ids)], expected, rtol=1e-9, atol=1e-12)
        if policy["name"] != "student":
            assert (batch.importance_weights[batch.response_mask] != 1).any()


def weights(policy: dict[str, Any], prompt: tuple[int, ...], ids: list[int]) -> torch.Tensor:
    """Written out for every token of the vocabulary."""
    found = []
    for at, token in enumerate(ids):
        before = torch.tensor([[*prompt, *ids[:at]]])
        with torch.no_grad():
            q, p = ((f.model(input_ids=before).logits[0, -1] / 0.8).softmax(-1) for f in (STUDENT, TEACHER))
        share = policy.get("teacher_share", 0.0)
        if policy["name"] == "speculative":
            kept = torch.zeros(rollouts.VOCAB).bool().scatter(0, p.topk(3).indices, True)
            behaviour = torch.where(kept, q, 0.0) + q[~kept].sum() * p
        elif policy.get("mix") == "logits":
            behaviour = q ** (1 - share) * p**share
            behaviour = behaviour / behaviour.sum()
        else:
            behaviour = (1 - share) * q + share * p
        found.append(q[token] / behaviour[token])
    return torch.stack(found)


# --- State ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 4, 5, 6, 7])
def test_a_source_that_is_saved_anywhere_in_a_rollout_goes_on_as_if_nothing_had_been(taken: int) -> None:
    settings: dict[str, Any] = {"batches_per_rollout": 3, "num_updates_per_batch": 2} | MIXED
    whole = source(**settings)
    expected = drawn(whole, taken + 9)[taken:]
    first, second = source(**settings), source(**settings)
    drawn(first, taken)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert second.figures() == first.figures()
    assert all(same(a, b) for a, b in zip(drawn(second, 9), expected, strict=True))


def test_a_saved_rollout_is_the_old_students_and_its_credit_too() -> None:
    """A judge or a sampler that looked again would see another student."""
    settings: dict[str, Any] = {"batches_per_rollout": 2} | MIXED
    first = source(**settings)
    first.next(SHARE, 0.0)
    state, expected = through_a_file(first.state_dict()), first.next(SHARE, 0.0)
    later = rollouts.rollouts(rollouts.gpt2(9), TEACHER, spec(**settings))
    later.load_state_dict(state)
    assert same(later.next(SHARE, 0.0), expected)


def test_a_rollout_that_is_used_up_takes_no_room_in_the_checkpoint() -> None:
    of = source(batches_per_rollout=2)
    of.next(SHARE, 0.0)
    assert len(of.state_dict()["rollout"]) == 2
    of.next(SHARE, 0.0)
    assert of.state_dict()["rollout"] == []


STUDENT, TEACHER = rollouts.gpt2(1), rollouts.gpt2(2)


def test_a_rollouts_figures_are_those_of_its_responses_and_their_credit() -> None:
    advantages = recipe.Advantages(include_current=True, length_normalise=False)
    credit = recipe.PolicyGradient(advantages=advantages)
    of = rollouts.rollouts(STUDENT, TEACHER, spec(batches_per_rollout=3), credit=credit)
    batches = [batch for _ in range(3) for batch in of.next(Share(4, 2), 0.0)]
    rows, figures = [ids for _, ids in flat(batches)], of.figures()
    ended = sum(ids[-1] == END for ids in rows)
    assert ended != len(rows) - ended
    assert figures["finished_share"] == ended / len(rows)
    assert figures["response_tokens"] == sum(map(len, rows)) / len(rows)
    given = torch.cat([batch.credit.advantages[batch.response_mask] for batch in batches if batch.credit])
    assert figures["advantage_mean"] == pytest.approx(given.mean().item(), rel=1e-9)
    assert figures["advantage_rms"] == pytest.approx(given.square().mean().sqrt().item(), rel=1e-9)
    assert abs(figures["advantage_mean"]) > 0.01  # so that the rms is not the deviation
