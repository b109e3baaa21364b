"""Matches of what is inside two models: the maps that are made, and the value they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from potstill import objectives, recipe
from potstill.data.examples import Tokenised
from potstill.errors import ConfigError
from potstill.features.building import Between, build_match
from potstill.features.matching import Match, drawn_channels, parameters_of, shared_heads
from potstill.features.selection import Model, Wanted, load, save
from potstill.inside import Looking
from potstill.models import taps
from potstill.models.families import Family, family_of
from potstill.training.runtime import Runtime
from potstill.types import Batch, Inside, Tap
from tests import tiny

NARROW, WIDE = (family_of(tiny.llama(seed, layers=2, hidden=width).double()) for seed, width in ((1, 16), (2, 32)))
BATCH = tiny.batch([(3, 5), (2, 4), (4, 1)], extra_right=2)
CHOSEN = {0: tuple(range(0, 32, 2)), 1: tuple(range(16))}


def chosen(_spec: Any, layers: Sequence[int], place: str, count: int) -> Mapping[int, Sequence[int]]:
    assert (place, count) == ("residual", 16)
    return {layer: CHOSEN[layer] for layer in layers}


def match(kept: Sequence[int] | None = None, student: Family = NARROW, seed: int = 0, **settings: Any) -> Match:
    name = settings.pop("name", "hidden_mse")
    term = recipe.Term.model_validate({"objective": {"name": name} | settings})
    assert isinstance(term.objective, recipe.FeatureSection)
    return build_match(term.objective, Between(student, WIDE, kept, seed, lambda: torch.ones(2), chosen))


def inside(family: Family, places: Sequence[Tap], batch: Batch = BATCH) -> Inside:
    with taps.tapping(family, places) as seen, torch.no_grad():
        family(batch)
    return taps.read(family, seen, batch)


def scale_of(batch: Batch) -> torch.Tensor:
    return batch.response_mask.double() / batch.num_response_tokens


def value(made: Match, objective: Any, batch: Batch = BATCH) -> torch.Tensor:
    ours, theirs = inside(NARROW, made.student_taps, batch), inside(WIDE, made.teacher_taps, batch)
    return made.value(objective, ours, theirs, scale_of(batch), batch.response_mask)


def test_selected_channels_meet_the_students_in_order() -> None:
    made = match(channels="selected")
    ours, theirs = inside(NARROW, made.student_taps), inside(WIDE, made.teacher_taps)
    expected = [
        (ours[Tap(at, "residual")] - theirs[Tap(at, "residual")][..., list(CHOSEN[at])]).square().mean(-1)
        for at in (0, 1)
    ]
    by_hand = torch.stack([one[BATCH.response_mask].mean() for one in expected]).mean()
    found = value(made, lambda s, t: objectives.hidden_mse(s, t, normalise=False))
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-12)
    assert not parameters_of([made])


def test_a_projection_learns_and_everything_else_is_frozen() -> None:
    made = match(channels="projection")
    assert [tuple(p.shape) for p in parameters_of([made])] == [(32, 16), (32, 16)]
    found = value(made, objectives.hidden_cosine)
    found.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters_of([made]))
    for channels in ("selected", "random"):
        assert not parameters_of([match(channels=channels)])


def test_projections_are_drawn_by_the_seed_alone() -> None:
    before = torch.get_rng_state()
    one, other, again = (parameters_of([match(channels="projection", seed=seed)]) for seed in (1, 2, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[0], one[1])
    assert {p.dtype for p in one} == {torch.float64}


def test_random_channels_are_others_in_each_layer_and_by_seed_rising() -> None:
    first, second = (made.indices.tolist() for made in match(channels="random").maps)
    assert first != second
    assert all(sorted(set(one)) == one and len(one) == 16 for one in (first, second))
    assert match(channels={"name": "random", "seed": 5}).maps[0].indices.tolist() != first
    assert drawn_channels(3, 4, 4) == [0, 1, 2, 3]


def test_kept_channels_are_those_the_student_was_cut_with() -> None:
    kept = list(range(1, 32, 2))
    assert [made.indices.tolist() for made in match(kept, channels="kept").maps] == [kept, kept]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": "all"}, "the student is 16 wide and the teacher 32"),
        ({"channels": "kept"}, "a student that was cut in width"),
        ({"name": "relation_divergence", "heads": 5}, "heads is 5, and 16 channels do not make as many"),
    ],
)
def test_channels_that_cannot_meet_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        match(**settings)


def test_a_student_wider_than_its_teacher_is_refused_but_projected() -> None:
    wider = family_of(tiny.llama(3, layers=2, hidden=64).double())
    for channels in ("selected", "random", "kept"):
        with pytest.raises(ConfigError, match="the student is 64 wide at residual, the teacher 32"):
            match(student=wider, channels=channels)
    assert match(student=wider, channels="projection").maps


def test_relations_are_of_every_kind_and_of_as_many_heads_as_all_widths_allow() -> None:
    made = match(name="relation_divergence")
    assert [pair.student for pair in made.pairs] == [Tap(1, what) for what in ("queries", "keys", "values")]
    assert shared_heads([16, 8, 32, 16], 4) == 4
    assert shared_heads([192, 576], 9) == 8
    assert shared_heads([7, 5], 4) == 1
    by_hand = []
    for pair in made.pairs:
        ours, theirs = inside(NARROW, [pair.student])[pair.student], inside(WIDE, [pair.teacher])[pair.teacher]
        for row, length in enumerate(BATCH.response_mask.sum(1).tolist()):
            relations = []
            for states in (ours[row, :length], theirs[row, :length]):
                heads = states.unflatten(-1, (4, -1)).transpose(0, 1)
                scores = heads @ heads.transpose(1, 2) / heads.shape[-1] ** 0.5
                future = torch.ones(length, length, dtype=torch.bool).triu(1)
                relations.append(scores.masked_fill(future, -torch.inf).softmax(-1))
            student, teacher = relations
            terms = torch.where(teacher > 0, teacher * (teacher / student).log(), 0.0)
            by_hand.append(terms.sum(-1).mean(0).sum())
    expected = torch.stack(by_hand).sum() / 3 / BATCH.num_response_tokens
    torch.testing.assert_close(value(made, objectives.relation_divergence), expected, rtol=1e-10, atol=1e-12)


def test_positions_of_weight_0_are_out_whatever_stands_there() -> None:
    made = match(channels="random")
    ours, theirs = inside(NARROW, made.student_taps), inside(WIDE, made.teacher_taps)
    scale = scale_of(BATCH)
    scale[1] = 0
    expected = made.value(objectives.hidden_cosine, ours, theirs, scale, BATCH.response_mask)
    for states in (*ours.values(), *theirs.values()):
        states[1] = torch.nan
    found = made.value(objectives.hidden_cosine, ours, theirs, scale, BATCH.response_mask)
    assert torch.equal(found, expected)
    assert made.value(objectives.hidden_cosine, ours, theirs, scale * 0, BATCH.response_mask) == 0


def test_a_correlation_is_of_tokens_with_weight_and_counts_by_how_much_they_have() -> None:
    made = match(name="hidden_correlation", channels="random")
    ours, theirs = inside(NARROW, made.student_taps), inside(WIDE, made.teacher_taps)
    scale = scale_of(BATCH)
    scale[1] = 0
    found = made.value(objectives.hidden_correlation, ours, theirs, scale, BATCH.response_mask)
    by_hand = [
        objectives.hidden_correlation(ours[pair.student], channels.teacher(theirs[pair.teacher]), scale != 0)
        for pair, channels in zip(made.pairs, made.maps, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(by_hand).mean() * 0.6, rtol=0, atol=1e-12)  # 6 tokens of 10


def test_tokens_without_weight_are_related_to_all_the_same() -> None:
    """So what tokens are worth adds up, whoever shares the weight with them."""
    made, whole = match(name="relation_divergence"), scale_of(BATCH)
    ours, theirs = inside(NARROW, made.student_taps), inside(WIDE, made.teacher_taps)
    some = torch.where(torch.arange(whole.shape[1]) % 2 == 0, whole, 0)
    parts = [
        made.value(objectives.relation_divergence, ours, theirs, scale, BATCH.response_mask)
        for scale in (some, whole - some, whole)
    ]
    assert min(parts) > 0
    torch.testing.assert_close(parts[0] + parts[1], parts[2], rtol=1e-12, atol=0)


def test_a_correlation_of_one_token_is_nothing() -> None:
    made = match(name="hidden_correlation", channels="random")
    one = tiny.batch([(3, 1)])
    assert value(made, objectives.hidden_correlation, one) == 0


# --- Channels that are selected for a term ---------------------------------------------------------------------------


def looking(folder: Path) -> Looking:
    generator = torch.Generator().manual_seed(0)
    tokens = [tuple(torch.randint(1, tiny.VOCAB, (6,), generator=generator).tolist()) for _ in range(12)]
    rows = [Tokenised(f"row:{at}", ids[:2], ids[2:], "", "", False) for at, ids in enumerate(tokens)]
    runtime, tokenizer = Runtime(torch.device("cpu"), torch.float64), SimpleNamespace(eos_token_id=0)
    return Looking(NARROW, WIDE, "nowhere/wide", rows, None, tokenizer, runtime, folder, seed=0)


def selected(**channels: Any) -> recipe.FeatureSection:
    told = {"name": "hidden_mse", "layers": {"name": "last", "count": 1}, "channels": {"name": "selected"} | channels}
    spec = recipe.Term.model_validate({"objective": told}).objective
    assert isinstance(spec, recipe.FeatureSection)
    return spec


def test_as_many_rows_are_looked_at_as_the_term_says_and_by_its_measure(tmp_path: Path) -> None:
    looking(tmp_path).match("data/hidden_mse", selected(rows=5, measure="mean_activation"))
    kept = load(tmp_path / "channels" / "data-hidden_mse.json")
    assert (kept.model.name, kept.rows.rows) == ("nowhere/wide", 5)
    assert kept.wanted == Wanted(layers=(1,), count=16, place="residual", measure="mean_activation")


def test_a_named_file_is_of_this_teacher_this_place_and_as_many_channels(tmp_path: Path) -> None:
    looking(tmp_path).match("data/hidden_mse", selected(measure="mean_activation"))
    own, file = load(tmp_path / "channels" / "data-hidden_mse.json"), tmp_path / "named.json"
    save(own, file)
    made = looking(tmp_path).match("data/other", selected(file=str(file)))
    assert made.maps[0].indices.tolist() == list(own.channels[0])
    assert not (tmp_path / "channels" / "data-other.json").exists()
    of_mlp = own.wanted.model_copy(update={"place": "mlp"})
    of_15 = {"wanted": own.wanted.model_copy(update={"count": 15}), "channels": (own.channels[0][:15],)}
    for changed, said in (
        ({"model": Model(name="wide", fingerprint="0" * 64)}, "whose files are not this model's"),
        ({"wanted": of_mlp}, "keeps 16 channels of mlp, and the student has 16 of residual"),
        (of_15, "keeps 15 channels of residual, and the student has 16"),
    ):
        save(own.model_copy(update=changed), file)
        with pytest.raises(ConfigError, match=said):
            looking(tmp_path).match("data/other", selected(file=str(file)))
