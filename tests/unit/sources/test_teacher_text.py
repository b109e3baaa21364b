"""What the teacher writes before training: what stands in the folder, and what is trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill import recipe
from potstill.data.examples import Tokenised
from potstill.errors import DataError
from potstill.sampling.sampler import Response
from potstill.sampling.writer import Writer
from potstill.sources.teacher_text import Place, teacher_text
from tests import rollouts, tiny

TEACHER = rollouts.gpt2(2)
TOKENIZER = tiny.tokenizer()
ROWS = rollouts.rows(10)
ORIGIN = {"teacher": "a teacher", "data": "some rows"}


def spec(**settings: Any) -> recipe.RolloutSource:
    return rollouts.spec(policy="teacher", slots=2, **settings)


def text(folder: Path, wanted: recipe.RolloutSource, by: Writer | None = None, **changes: Any) -> tuple[Tokenised, ...]:
    given: dict[str, Any] = {"prompts": ROWS, "seed": 5, "origin": ORIGIN, "place": Place()} | changes
    return teacher_text(
        given.pop("prompts"),
        by or rollouts.writer(wanted, TEACHER, TEACHER),
        wanted,
        folder=folder,
        tokenizer=TOKENIZER,
        **given,
    )


class Counting:
    """The teacher, with a tally; it may be killed after some calls."""

    def __init__(self, wanted: recipe.RolloutSource, dies_at: int | None = None):
        self.inner, self.calls, self.asked, self.dies_at = rollouts.writer(wanted, TEACHER, TEACHER), 0, 0, dies_at

    def write(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int]) -> list[Response]:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.asked += len(prompts)
        return self.inner.write(prompts, seeds=seeds)


class Saying:
    """A teacher that says what it is told to, in turn."""

    def __init__(self, *said: tuple[tuple[int, ...], bool]):
        self.said = list(said)

    def write(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int]) -> list[Response]:
        told, self.said = self.said[: len(prompts)], self.said[len(prompts) :]
        return [Response(ids, (0.0,) * len(ids), (0.0,) * len(ids), finished) for ids, finished in told]


def card_of(folder: Path) -> dict[str, Any]:
    """The card without the time it took."""
    return {name: value for name, value in json.loads((folder / "card.json").read_text()).items() if name != "seconds"}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_token_that_is_trained_on_is_the_teachers_own(tmp_path: Path) -> None:
    """Compared with the teacher's greedy continuation, token by token, and with what stands in the file."""
    wanted = spec(temperature=0.0, filters=())
    found = text(tmp_path, wanted)
    stored = lines(tmp_path / "part-00000.jsonl")[1:]
    assert [(line["id"], line["ids"]) for line in stored] == [(row.example_id, greedy(row)) for row in ROWS]
    assert [list(row.response_ids) for row in found] == [greedy(row) for row in ROWS]
    assert [row.prompt_ids for row in found] == [row.prompt_ids for row in ROWS]
    assert [row.truncated for row in found] == [row.response_ids[-1] != rollouts.END for row in found]
    assert not any(row.response_ids == own.response_ids for row, own in zip(found, ROWS, strict=True))


def greedy(row: Tokenised) -> list[int]:

    ids = list(row.prompt_ids)
    for _ in range(rollouts.LONGEST):
        ids.append(int(TEACHER.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == rollouts.END:
            break
    return ids[len(row.prompt_ids) :]


def test_the_card_tells_who_wrote_how_and_what_was_left_out(tmp_path: Path) -> None:
    wanted = spec(filters=("empty", "unfinished"))
    kept = text(tmp_path, wanted)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["origin"] == ORIGIN
    assert card["seed"] == 5
    assert card["source"] == wanted.model_dump(mode="json")
    assert card["responses"] == len(ROWS) == len(kept) + sum(card["dropped"].values())
    assert card["kept"] == len(kept)
    assert card["kept_response_tokens"] == sum(len(row.response_ids) for row in kept)
    assert card["written_tokens"] >= card["kept_response_tokens"]
    part = tmp_path / "part-00000.jsonl"
    assert card["files"] == {part.name: sha256(part.read_bytes()).hexdigest()}
    assert not any(row.truncated for row in kept)
    for line in lines(part)[1:]:
        assert line["text"] == TOKENIZER.decode(line["ids"], skip_special_tokens=True)


def test_several_responses_to_each_prompt_are_different_draws(tmp_path: Path) -> None:
    found = text(tmp_path, spec(samples_per_prompt=3, filters=()))
    assert [row.example_id for row in found] == [f"{row.example_id}#{n}" for row in ROWS for n in range(3)]
    assert [row.prompt_ids for row in found[::3]] == [row.prompt_ids for row in ROWS]
    triples = [{row.response_ids for row in found[at : at + 3]} for at in range(0, len(found), 3)]
    assert sum(map(len, triples)) > 2 * len(ROWS)
    again = text(tmp_path / "once", spec(filters=()))
    assert [row.response_ids for row in again] == [row.response_ids for row in found[::3]]
    assert text(tmp_path / "other", spec(filters=()), seed=6) != again


LONG = tuple([3, 4, 5, 6] * 5)
SAID = [
    ((rollouts.END,), True),  # nothing but the end
    ((7,), False),  # cut after one token: not empty
    ((*LONG, rollouts.END), True),
    ((*range(1, 10), rollouts.END), True),
    (LONG, False),
]


@pytest.mark.parametrize(
    ("filters", "kept", "dropped"),
    [
        ((), [0, 1, 2, 3, 4], {}),
        (("empty",), [1, 2, 3, 4], {"empty": 1}),
        (("unfinished",), [0, 2, 3], {"unfinished": 2}),
        (("repetitive",), [0, 1, 3], {"repetitive": 2}),
        (("repetitive", "unfinished", "empty"), [3], {"repetitive": 2, "unfinished": 1, "empty": 1}),
        (("unfinished", "repetitive", "empty"), [3], {"unfinished": 2, "repetitive": 1, "empty": 1}),
    ],
)
def test_each_filter_drops_what_it_is_for_and_is_counted(
    tmp_path: Path, filters: tuple[recipe.Filter, ...], kept: list[int], dropped: dict[str, int]
) -> None:
    found = text(tmp_path, spec(filters=filters), Saying(*SAID), prompts=ROWS[:5])
    assert [row.response_ids for row in found] == [SAID[at][0] for at in kept]
    assert [row.example_id for row in found] == [f"row:{at}#0" for at in kept]
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["dropped"] == dropped
    assert len(lines(tmp_path / "part-00000.jsonl")) == 6  # all of it is kept on disk


def test_filters_that_leave_nothing_are_a_mistake_that_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)drop all 1 responses of the teacher: 1 empty.*fewer filters"):
        text(tmp_path, spec(), Saying(SAID[0]), prompts=ROWS[:1])


# --- Stopped and started ----------------------------------------------------------------------------------------------


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    first, again = Counting(spec()), Counting(spec())
    expected = text(tmp_path, spec(), first)
    assert first.asked == len(ROWS)
    before = (tmp_path / "part-00000.jsonl").read_bytes()
    assert text(tmp_path, spec(), again) == expected
    assert again.asked == 0
    assert (tmp_path / "part-00000.jsonl").read_bytes() == before


@pytest.mark.parametrize("cut", [1, 30, 10_000])
def test_a_stopped_teacher_goes_on_after_its_last_whole_line(tmp_path: Path, cut: int) -> None:
    expected = text(tmp_path / "whole", spec())
    with pytest.raises(KeyboardInterrupt):
        text(tmp_path, spec(), Counting(spec(), dies_at=2))
    part = tmp_path / "part-00000.jsonl"
    assert len(lines(part)) == 1 + 8  # the first lot: four times the slots
    whole_lines = max(0, len(part.read_bytes()[:-cut].split(b"\n")) - 2)
    part.write_bytes(part.read_bytes()[:-cut])
    on = Counting(spec())
    assert text(tmp_path, spec(), on) == expected
    assert on.asked == len(ROWS) - whole_lines
    assert card_of(tmp_path) == card_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "change", [{"origin": ORIGIN | {"teacher": "another"}}, {"seed": 6}, {"wanted": spec(temperature=0.5)}]
)
def test_text_of_another_origin_is_discarded(tmp_path: Path, change: dict[str, Any]) -> None:
    text(tmp_path, spec())
    change = dict(change)
    wanted = change.pop("wanted", spec())
    writer = Counting(wanted)
    found = text(tmp_path, wanted, writer, **change)
    assert writer.asked == len(ROWS)
    assert found == text(tmp_path / "fresh", wanted, **change)


def test_the_time_that_a_discarded_text_took_is_not_the_new_ones(tmp_path: Path) -> None:
    text(tmp_path, spec())
    card = tmp_path / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"seconds": 1000.0}))
    text(tmp_path, spec(), seed=6)
    assert json.loads(card.read_text())["seconds"] < 1000


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    expected = text(tmp_path / "one", spec(samples_per_prompt=3))
    second = Counting(spec(samples_per_prompt=3))

    def barrier() -> None:
        """Where the first process waits, the other writes its part; it would then wait for nobody."""
        text(tmp_path, spec(samples_per_prompt=3), second, place=Place(1, 2))

    found = text(tmp_path, spec(samples_per_prompt=3), place=Place(0, 2, barrier))
    assert found == expected
    assert second.asked == 15
    assert text(tmp_path, spec(samples_per_prompt=3), place=Place(1, 2)) == expected
    assert sorted(file.name for file in tmp_path.glob("*.jsonl")) == ["part-00000.jsonl", "part-00001.jsonl"]


def test_a_response_does_not_depend_on_the_prompts_beside_it(tmp_path: Path) -> None:
    all_of_them = {row.example_id: row.response_ids for row in text(tmp_path, spec(filters=()))}
    some = text(tmp_path / "some", spec(filters=()), prompts=[ROWS[7], ROWS[2]])
    assert [row.response_ids for row in some] == [all_of_them["row:7#0"], all_of_them["row:2#0"]]


def test_a_response_is_repetitive_if_over_half_of_its_4_grams_stood_before(tmp_path: Path) -> None:
    half = (1, 2, 1, 2, 1, 2, 1)  # 1212 2121 1212 2121
    over = (1, 2, 1, 2, 1, 2, 1, 2)  # three of five
    found = text(tmp_path, spec(filters=("repetitive",)), Saying((half, False), (over, False)), prompts=ROWS[:2])
    assert [row.response_ids for row in found] == [half]
