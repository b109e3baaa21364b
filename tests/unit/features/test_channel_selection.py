"""Which channels are chosen, how sure that is, and the file it is kept in."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from potstill import api, cli
from potstill.data.examples import Tokenised
from potstill.errors import ConfigError, DataError
from potstill.features.attribution import channel_scores
from potstill.features.choosing import choose, rows_sha256
from potstill.features.selection import Model, Selection, Wanted, cached, load, save
from potstill.features.stability import chance_overlap, half_overlaps, overlap, select
from potstill.features.standalone import layers_named
from potstill.models.families import family_of
from potstill.models.fingerprint import fingerprint_of
from potstill.sources.dataset import batches
from tests import tiny

OF = Model(name="big", fingerprint="f" * 64)
WANTED = Wanted(layers=(0, 2), count=5, place="mlp")


def rows(count: int = 24) -> list[Tokenised]:
    generator = torch.Generator().manual_seed(0)

    def ids(least: int) -> tuple[int, ...]:
        length = int(torch.randint(least, 9, (1,), generator=generator))
        return tuple(torch.randint(1, tiny.VOCAB, (length,), generator=generator).tolist())

    return [Tokenised(f"row:{index}", ids(1), ids(2), "", "", False) for index in range(count)]


def chosen(wanted: Wanted = WANTED, some: list[Tokenised] | None = None, **other: Any) -> Selection:
    return choose(family_of(tiny.llama()), rows() if some is None else some, wanted, model=OF, source="tiny", **other)


def never() -> NoReturn:
    raise AssertionError("it was to be read")


# --- Choosing ---------------------------------------------------------------------------------------------------------


def test_the_best_are_taken_in_rising_order_and_of_equal_ones_the_first() -> None:
    scores = torch.tensor([[1.0, 5, 1, 3, 1], [2.0, 2, 2, 2, 2]])
    assert select(scores, 3) == ((0, 1, 3), (0, 1, 2))
    wide = torch.zeros(1, 3000)
    assert select(wide, 40) == (tuple(range(40)),)


@pytest.mark.parametrize("count", [0, 6])
def test_more_than_there_are_cannot_be_taken(count: int) -> None:
    with pytest.raises(ConfigError, match="keep from 1 to 5"):
        select(torch.zeros(1, 5), count)


def test_what_is_not_a_number_has_no_order() -> None:
    with pytest.raises(ValueError, match="not a number"):
        select(torch.tensor([[1.0, torch.nan]]), 1)


@pytest.mark.parametrize(("count", "width"), [(1, 5), (3, 8), (5, 6), (4, 4)])
def test_chance_is_the_mean_over_all_pairs_of_choices(count: int, width: int) -> None:
    every = list(combinations(range(width), count))
    mean = sum(overlap(every[0], other) for other in every) / len(every)
    assert chance_overlap(count, width) == pytest.approx(mean)


def test_chance_of_many_channels_is_that_of_their_mean() -> None:
    assert chance_overlap(5504, 11008) == pytest.approx(1 / 3, rel=1e-3)


def test_halves_that_are_alike_choose_alike_and_others_as_chance_has_it() -> None:
    alike = torch.rand(1, 2, 40, generator=torch.Generator().manual_seed(0)).expand(6, -1, -1)
    assert half_overlaps(alike, 10, seed=0) == [[1.0, 1.0]] * 5
    unlike = torch.rand(16, 50, 40, generator=torch.Generator().manual_seed(0))
    found = torch.tensor(half_overlaps(unlike, 10, seed=0))
    assert found.shape == (5, 50)
    assert found.mean().item() == pytest.approx(chance_overlap(10, 40), abs=0.02)
    assert half_overlaps(unlike, 10, seed=0) != half_overlaps(unlike, 10, seed=1)
    assert half_overlaps(unlike[:1], 10, seed=0) == []


def test_halves_are_without_rows_in_common() -> None:
    """Of two parts each is a half, so that the overlap is that of the parts."""
    two = torch.rand(2, 1, 30, generator=torch.Generator().manual_seed(1))
    parts = overlap(*(select(part, 10)[0] for part in two))
    assert half_overlaps(two, 10, seed=0) == [[parts]] * 5


def test_the_choice_is_that_of_the_scores_whatever_the_batches_and_the_order() -> None:
    scores = channel_scores(
        family_of(tiny.llama()), batches(rows(), 24, 0), [0, 2], place="mlp", measure="grad_activation"
    )
    whole = chosen()
    assert whole.channels == select(scores, 5)
    assert chosen(batch_size=1).channels == whole.channels
    assert chosen(some=rows()[::-1]).channels == whole.channels
    assert chosen(batch_size=3, pad_id=7) == chosen(batch_size=3, pad_id=0)


def test_what_is_said_of_a_choice() -> None:
    found, family = chosen(), family_of(tiny.llama())
    scores = channel_scores(family, batches(rows(), 8, 0), [0, 2], place="mlp", measure="grad_activation")
    assert (found.layers, found.width, found.channels_of(2)) == ((0, 2), 32, found.channels[1])
    assert found.rows.rows == 24
    assert found.rows.response_tokens == sum(len(row.response_ids) for row in rows())
    assert found.scores[1].highest == pytest.approx(scores[1].max().item())
    kept = scores[1, list(found.channels[1])].sum() / scores[1].sum()
    assert found.scores[1].selected_share == pytest.approx(kept.item())
    assert found.stability is not None
    assert (found.stability.between, found.stability.comparisons) == ("halves of the sample", 5)
    assert found.stability.chance == pytest.approx(chance_overlap(5, 32))
    assert found.stability.lowest <= found.stability.mean < 1
    assert found.stability.mean > 2 * found.stability.chance
    assert found.versions["torch"] == torch.__version__
    with pytest.raises(ConfigError, match="no channels were chosen of layer 1"):
        found.channels_of(1)


def test_random_channels_are_compared_with_another_seeds() -> None:
    random = Wanted(layers=(0, 2), count=16, place="mlp", measure="random", seed=4)
    found, other = chosen(random), chosen(random.model_copy(update={"seed": 5}))
    assert found.stability is not None
    assert found.stability.between == "seeds"
    assert found.stability.by_layer == tuple(map(overlap, found.channels, other.channels))


def test_one_row_cannot_be_halved_and_none_cannot_be_measured() -> None:
    assert chosen(some=rows(1)).stability is None
    with pytest.raises(DataError, match="no row"):
        chosen(some=[])


def test_a_count_that_cannot_be_had_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(ConfigError, match="keep from 1 to 32"):
        chosen(WANTED.model_copy(update={"count": 33}), watch=lambda _: never())


@pytest.mark.parametrize(("text", "layers"), [("all", (0, 1, 2, 3)), ("last-3", (1, 2, 3)), ("3, 0,3", (0, 3))])
def test_layers_by_name(text: str, layers: tuple[int, ...]) -> None:
    assert layers_named(text, 4) == layers


@pytest.mark.parametrize("text", ["4", "last-5", "last-0", "last-", "0,x", "", "-1", "first"])
def test_layers_that_are_not_there(text: str) -> None:
    with pytest.raises(ConfigError, match="which has 4"):
        layers_named(text, 4)


# --- The file ---------------------------------------------------------------------------------------------------------


def test_a_file_gives_back_what_was_put_in(tmp_path: Path) -> None:
    selection = chosen()
    save(selection, tmp_path / "deep" / "channels.json")
    assert load(tmp_path / "deep" / "channels.json", fingerprint=OF.fingerprint, width=32) == selection
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["channels.json"]


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    save(chosen(), tmp_path / "channels.json")
    with pytest.raises(ConfigError, match="made of big, whose files are not this model's"):
        load(tmp_path / "channels.json", fingerprint="e" * 64)
    with pytest.raises(ConfigError, match="of 32 channels, those of big, and this model has 64"):
        load(tmp_path / "channels.json", fingerprint=OF.fingerprint, width=64)


def test_a_file_that_is_not_there_is_no_selection(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="potstill attribute"):
        load(tmp_path / "channels.json")


@pytest.mark.parametrize(
    "change",
    [
        {"channels": [[1, 2, 3, 4, 5]]},
        {"channels": [[1, 2, 3, 4, 5], [1, 2, 3, 5, 4]]},
        {"channels": [[1, 2, 3, 4, 5], [1, 2, 3, 4, 32]]},
        {"channels": [[1, 2, 3, 4, 5], [1, 2, 3, 4]]},
        {"channels": [[1, 2, 3, 4, 5], [-1, 2, 3, 4, 5]]},
        {"channels": [[1, 2, 3, 4, 5], [1, 1, 3, 4, 5]]},
        {"width": "wide"},
        {"more": 1},
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "channels.json"
    file.write_text(json.dumps(chosen().model_dump(mode="json") | change), encoding="utf-8")
    with pytest.raises(DataError, match="is no selection of channels"):
        load(file)


def test_what_was_made_with_the_same_settings_is_read(tmp_path: Path) -> None:
    settings = WANTED.settings(OF.fingerprint, rows_sha256(rows()))
    made = cached(tmp_path, settings, chosen)
    assert made.settings == settings
    assert cached(tmp_path, settings, never) == made
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text(encoding="utf-8")[:-100], encoding="utf-8")
    assert cached(tmp_path, settings, chosen) == made  # made again
    assert load(file) == made


@pytest.mark.parametrize("change", [{"count": 6}, {"layers": (0, 1)}, {"measure": "logit_lens"}, {"place": "residual"}])
def test_other_settings_have_another_file(tmp_path: Path, change: dict[str, Any]) -> None:
    other, rows_hash = WANTED.model_copy(update=change), rows_sha256(rows())
    first = cached(tmp_path, WANTED.settings(OF.fingerprint, rows_hash), chosen)
    second = cached(tmp_path, other.settings(OF.fingerprint, rows_hash), lambda: chosen(other))
    assert second != first
    assert len(list(tmp_path.iterdir())) == 2


def test_steps_matter_to_the_measure_that_has_them() -> None:
    more = WANTED.model_copy(update={"steps": 3})
    assert more.settings("a", "b") == WANTED.settings("a", "b")
    along = {"measure": "integrated_gradients"}
    assert more.model_copy(update=along).settings("a", "b") != WANTED.model_copy(update=along).settings("a", "b")


def test_rows_are_known_by_their_tokens_and_order() -> None:
    hashes = {rows_sha256(some) for some in (rows(), rows()[::-1], rows()[1:])}
    assert len(hashes) == 3
    moved = [
        Tokenised("x", row.prompt_ids + row.response_ids[:1], row.response_ids[1:], "", "", False) for row in rows()
    ]
    assert rows_sha256(moved) not in hashes


def test_what_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        cached(tmp_path, WANTED.settings("a", "b"), never)
    assert list(tmp_path.iterdir()) == []


# --- The command ------------------------------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``potstill attribute`` in this process on a tiny model and rows: its exit code, output and errors."""
    tiny.save(tiny.llama(), tmp_path / "big")
    tiny.data_file(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potstill", "attribute", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


ASKED = ("big", "--data", "rows.jsonl", "--keep", "8", "--out", "channels.json", "--device", "cpu")


def test_the_command_writes_a_file_and_the_second_time_reads_it(call: Run, tmp_path: Path) -> None:
    code, out, _ = call(*ASKED, "--limit", "20")
    assert code == 0
    assert "8 of 16 residual channels by grad_activation, on 20 rows" in out
    assert "by chance 0.34" in out
    assert out.endswith("wrote channels.json\n")
    written = (tmp_path / "channels.json").read_bytes()
    made = load(tmp_path / "channels.json", fingerprint=fingerprint_of("big"), width=16)
    assert (made.layers, made.rows.rows) == ((0, 1, 2), 20)
    code, out, _ = call(*ASKED, "--limit", "20", "--format", "json")
    assert code == 0
    assert Selection.model_validate_json(out) == made
    code, out, _ = call(*ASKED, "--limit", "20")
    assert out.endswith("read from channels.json\n")
    assert (tmp_path / "channels.json").read_bytes() == written


def test_a_file_that_is_there_is_read_without_measuring(call: Run) -> None:
    """By the command's defaults, which are those of Python."""
    call(*ASKED, "--measure", "integrated_gradients")
    again: dict[str, Any] = {"data": "rows.jsonl", "keep": 8, "out": "channels.json", "device": "cpu"}
    again["measure"] = "integrated_gradients"
    assert api.attribute("big", watch=lambda _: never(), **again).wanted.count == 8


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--keep", "7"), "differs in count (8 there, 7 asked for)"),
        (("--limit", "10"), "differs in rows"),
        (("--measure", "random", "--layers", "all"), "differs in measure"),
        (("--keep", "17", "--out", "new.json"), "keep from 1 to 16"),
        (("--layers", "last-9"), "which has 3"),
        (("--out", "."), "is a folder"),
        (("--data", "nothing.jsonl"), "nothing.jsonl"),
    ],
)
def test_mistakes_are_named_and_leave_the_file_as_it_was(call: Run, tmp_path: Path, more: Any, says: str) -> None:
    call(*ASKED)
    before = (tmp_path / "channels.json").read_bytes()
    code, _, err = call(*ASKED, *more)
    assert code == 2
    assert says in err
    assert "fix: " in err
    assert (tmp_path / "channels.json").read_bytes() == before
    assert not (tmp_path / "new.json").exists()


def test_a_file_of_another_kind_is_not_overwritten(call: Run, tmp_path: Path) -> None:
    (tmp_path / "channels.json").write_text('{"mine": 1}', encoding="utf-8")
    code, _, err = call(*ASKED)
    assert code == 2
    assert "remove it, or name another file" in err
    assert (tmp_path / "channels.json").read_text(encoding="utf-8") == '{"mine": 1}'


def test_rows_that_the_model_does_not_see_the_whole_of_are_refused(call: Run, tmp_path: Path) -> None:
    model = tiny.llama()
    model.config.max_position_embeddings = 20
    tiny.save(model, tmp_path / "short")
    code, _, err = call("short", *ASKED[1:])
    assert code == 2
    assert "20 positions" in err


def test_the_code_of_the_how_to_reads_a_file(call: Run) -> None:
    page = Path(__file__).parents[3] / "docs" / "how-to" / "choose-channels.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    call(*ASKED)
    names: dict[str, Any] = {"file": Path("channels.json"), "teacher": "big", "width": 16}
    exec(code, names)
    assert len(names["selection"].channels_of(2)) == 8


# --- A real model -----------------------------------------------------------------------------------------------------


def test_a_real_models_choice_is_far_from_chance(data_dir: Path, tmp_path: Path) -> None:
    model = data_dir / "stories260k"
    if not model.is_dir():
        pytest.skip("needs the model stories260k")
    found = api.attribute(
        str(model), data="starter", keep=16, out=tmp_path / "channels.json", limit=16, device="cpu", layers="last-2"
    )
    assert found.stability is not None
    assert found.stability.lowest > 2 * found.stability.chance
    random = api.attribute(
        str(model), data="starter", keep=16, out=tmp_path / "random.json", limit=16, device="cpu", measure="random"
    )
    assert overlap(found.channels[-1], random.channels[-1]) < found.stability.lowest
