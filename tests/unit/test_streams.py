"""tests/unit/test_streams.py: what a recipe's streams are made of, from the recipe to what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potstill import recipe, recipes, streams
from potstill.assembly import Teaching
from potstill.data.examples import Tokenised
from potstill.data.prepare import Prepared
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Mixed, Policy, Single, Speculative
from potstill.sampling.writer import LocalWriter
from potstill.sources.rollout import seed_of
from potstill.sources.source import Share
from potstill.teachers.local import LocalTeacher, OncePerBatch, Remembering
from potstill.training.runtime import Runtime
from tests import rollouts
from tests.rollouts import END, VOCAB, flat, same

STUDENT, TEACHER = rollouts.gpt2(1), rollouts.gpt2(2)
SEED, SHARE = 3, Share(4, 2)
TOKENIZER = SimpleNamespace(eos_token_id=END, decode=lambda ids, **_: " ".join(map(str, ids)))


def parts(
    folder: Path, made: recipe.Recipe, *, runtime: Runtime = rollouts.RUNTIME, plain_text: Any = None
) -> streams.Parts:
    local = LocalTeacher(TEACHER)
    return streams.Parts(
        stage=made.stage,
        data=Prepared(tuple(rollouts.rows()), (), (), {"files": ["rows.jsonl"]}),
        plain_text=plain_text or {},
        teaching=Teaching(local, Remembering(local), VOCAB, "", 0),
        student=STUDENT,
        tokenizer=TOKENIZER,
        runtime=runtime,
        folder=folder,
        seed=SEED,
    )


def prompts_of(names: Sequence[str]) -> list[str]:
    return [name.split("#")[0] for name in names]


# --- Who writes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "writes", "families"),
    [
        ({"name": "student"}, Single(), [STUDENT]),
        ({"name": "teacher"}, Single(), [TEACHER]),
        ({"name": "token_mixed", "teacher_share": 0.3, "mix": "logits"}, Mixed(0.3, "logits"), [STUDENT, TEACHER]),
        ({"name": "speculative", "top_k": 4}, Speculative(4), [STUDENT, TEACHER]),
    ],
)
def test_who_writes_and_how_is_what_the_recipe_says(
    tmp_path: Path, policy: dict[str, Any], writes: Policy, families: list[Any]
) -> None:
    settings = {"max_new_tokens": 7, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "no_repeat_ngram": 3, "slots": 2}
    spec = rollouts.spec(**settings | {"policy": policy})
    decoding = Decoding(7, frozenset({END}), temperature=0.7, top_k=5, top_p=0.9, no_repeat_ngram=3)
    assert streams.writer(parts(tmp_path, recipes.gkd()), spec) == LocalWriter(writes, families, decoding, 2)


# --- What is drawn ----------------------------------------------------------------------------------------------------


def test_a_rollouts_draws_are_the_runs_seeds_and_its_streams_own(tmp_path: Path) -> None:
    made = recipes.minillm(max_new_tokens=rollouts.LONGEST, batches_per_rollout=2)
    (stream,) = streams.build_streams(parts(tmp_path, made))
    spec = made.stage.streams[0].source
    assert isinstance(spec, recipe.RolloutSource)
    by_hand = rollouts.rollouts(
        STUDENT, TEACHER, spec, credit=made.stage.streams[0].terms[0].objective, seed=seed_of(SEED, "rollouts")
    )  # type: ignore[arg-type]
    for _ in range(3):
        assert same(stream.source.next(SHARE, 0.0), by_hand.next(SHARE, 0.0))
    assert isinstance(stream.teacher, OncePerBatch)  # or the teacher runs again for each of four updates


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_gkds_share_is_that_of_the_students_text(tmp_path: Path, share: float) -> None:
    made = recipes.gkd(student_share=share, rollout=rollouts.spec())
    (stream,) = streams.build_streams(parts(tmp_path, made))
    for _ in range(4):
        assert {"#" in name for batch in stream.source.next(SHARE, 0.5) for name in batch.example_ids} == {share == 1.0}


def test_imitkd_goes_from_the_datas_text_to_the_students(tmp_path: Path) -> None:
    (stream,) = streams.build_streams(parts(tmp_path, recipes.imitkd(left=0.001, rollout=rollouts.spec())))

    def is_own(progress: float) -> float:
        stream.source.next(SHARE, progress)
        return stream.source.figures()["is_rollout"]

    assert [is_own(0.0) for _ in range(6)] == [0.0] * 6
    assert [is_own(1.0) for _ in range(6)] == [1.0] * 6


def test_plain_text_is_the_streams_own_and_not_the_rows_of_the_data(tmp_path: Path) -> None:
    made = recipes.minillm(plain_text="text.txt", max_new_tokens=rollouts.LONGEST)
    blocks = (Tokenised("text.txt:0", (1,), (2, 3, 4), "", "", truncated=False),)
    rollout, text = streams.build_streams(parts(tmp_path, made, plain_text={"plain_text": blocks}))
    (batch, _) = text.source.next(SHARE, 0.0)
    assert set(batch.example_ids) == {"text.txt:0"}
    assert [len(flat(part)) for part in (rollout.source.next(SHARE, 0.0), text.source.next(SHARE, 0.0))] == [4, 4]


def test_another_order_of_the_rows_is_no_other_seeds_first_one(tmp_path: Path) -> None:
    """Or a control of one seed would see what the method of the next one sees."""
    made = recipes.step_by_step(variant="standard_twice")
    first = parts(tmp_path, made)
    count = len(first.data.train)

    def epoch(of: streams.Parts, name: str) -> list[str]:
        found = {stream.spec.name: stream.source for stream in streams.build_streams(of)}
        return [one for batch in found[name].next(Share(count, count), 0.0) for one in batch.example_ids]

    orders = [epoch(first, "label"), epoch(first, "label_again"), epoch(replace(first, seed=SEED + 1), "label")]
    assert len(set(map(tuple, orders))) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1


# --- Replay -----------------------------------------------------------------------------------------------------------


def replay(folder: Path, world_size: int = 1, **settings: Any) -> Any:
    made = recipes.distillm(replay=recipe.ReplaySource(rollout=rollouts.spec(max_new_tokens=2), **settings))
    runtime = replace(rollouts.RUNTIME, world_size=world_size)
    return streams.build_streams(parts(folder, made, runtime=runtime))[0].source


def shares(source: Any, *perplexities: float) -> list[float]:
    found = []
    for perplexity in perplexities:
        source.observe({"perplexity": perplexity})
        found.append(source.figures()["student_share"])
    return found


def test_a_replays_share_starts_and_rises_as_the_recipe_says(tmp_path: Path) -> None:
    e = 2.718281828459045
    adaptive = replay(tmp_path, student_share=0.2, step=0.3, tolerance=0.5)
    assert shares(adaptive, e**1, e**1.4, e**1.6) == pytest.approx([0.2, 0.2, 0.5])
    fixed = replay(tmp_path, student_share=0.2, step=0.3, tolerance=0.5, adaptive=False)
    assert shares(fixed, e**1, e**9) == [0.2, 0.2]


def test_processes_share_a_replays_buffer(tmp_path: Path) -> None:
    for world_size, own in ((1, 6.0), (2, 3.0)):
        source = replay(tmp_path, world_size, student_share=1.0, capacity=6)
        for _ in range(4):
            source.next(Share(4, 2, 0, world_size), 0.0)
        assert source.figures()["replay_sequences"] == own


# --- The teacher's text -----------------------------------------------------------------------------------------------


def test_the_teacher_answers_as_many_prompts_as_the_budget_can_use_and_those_that_are_drawn_first(
    tmp_path: Path,
) -> None:
    made = recipes.seqkd(samples_per_prompt=2, max_new_tokens=3, filters=())
    stage = made.stage.model_copy(update={"budget": recipe.Budget(steps=4), "batch": recipe.Batching(size=2)})
    made = made.model_copy(update={"stages": (stage,)})
    (stream,) = streams.build_streams(parts(tmp_path, made))
    rows = stream.source.examples  # type: ignore[attr-defined]
    expected = prompts_of([row.example_id for row in rollouts.data(seed=SEED).draw(Share(4, 4))])
    assert prompts_of([row.example_id for row in rows]) == [name for name in expected for _ in range(2)]


def test_a_mixture_with_the_teachers_text_draws_the_teachers(tmp_path: Path) -> None:
    made = recipes.gkd(student_share=1.0, rollout=rollouts.spec(policy="teacher", filters=()))
    (stream,) = streams.build_streams(parts(tmp_path, made))
    texts = {str(flat([batch])) for _ in range(3) for batch in stream.source.next(SHARE, 0.0)}
    assert (tmp_path / "teacher_text" / "data" / "part-00000.jsonl").exists()
    assert texts


def test_another_file_of_prompts_is_another_origin(tmp_path: Path) -> None:
    made = recipes.seqkd(max_new_tokens=3, filters=())
    first = parts(tmp_path, made)
    streams.build_streams(first)
    card = tmp_path / "teacher_text" / "teacher_text" / "card.json"
    assert '"rows.jsonl"' in card.read_text()


def test_distillm2s_two_streams_answer_the_same_prompts_at_the_same_step(tmp_path: Path) -> None:
    made = recipes.distillm2(max_new_tokens=4, batches_per_rollout=1, temperature=1.0)
    stage = made.stage.model_copy(update={"budget": recipe.Budget(steps=6)})  # 6 steps of 2: all 12 prompts
    teachers, own = streams.build_streams(parts(tmp_path, made.model_copy(update={"stages": (stage,)})))
    for _ in range(6):
        drawn = [
            prompts_of([name for batch in stream.source.next(Share(2, 2), 0.0) for name in batch.example_ids])
            for stream in (teachers, own)
        ]
        assert drawn[0] == drawn[1]
