"""A teacher behind a cache says what it says without one, and is not asked twice."""

from __future__ import annotations

import errno
import gc
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from potstill import caching, recipe, recipes, stage
from potstill.assembly import Teaching
from potstill.caching import Caches, comes_again, estimate
from potstill.errors import CacheError
from potstill.models.families import Family, family_of
from potstill.run import Run
from potstill.sources.dataset import DatasetSource, batches
from potstill.sources.source import Share
from potstill.teachers.cache.cached import CachedTeacher, Count, rows_of
from potstill.teachers.cache.forms import DrawsForm, Form, LogitsForm, StatesForm, TopKForm
from potstill.teachers.cache.store import Store
from potstill.teachers.digests import digest_of, digests_of
from potstill.teachers.local import LocalTeacher, Remembering, SignalSource
from potstill.teachers.sparse import SparseTeacher
from potstill.training.runtime import Runtime
from potstill.training.step import LiveStream
from potstill.types import Batch, Dense, Live, Sampled, TeacherSignal, TopK
from tests import rollouts, tiny

LENGTHS = [(3, 7), (6, 1), (1, 9), (4, 4)]
DOUBLE = torch.float64


class Counting:
    """A teacher that notes which rows it is asked about."""

    def __init__(self, teacher: SignalSource):
        self._teacher = teacher
        self.asked: list[str] = []

    def signal(self, batch: Batch) -> TeacherSignal:
        self.asked += batch.example_ids
        return self._teacher.signal(batch)


def model(seed: int = 1) -> Family:
    return family_of(tiny.llama(seed, layers=2).to(DOUBLE))


def local() -> LocalTeacher:
    return LocalTeacher(model())


def states(dtype: torch.dtype = DOUBLE) -> Callable[[LocalTeacher], tuple[SignalSource, Form]]:
    return lambda teacher: (teacher, StatesForm(teacher.family.head, dtype, DOUBLE))


FORMS: dict[str, Callable[[LocalTeacher], tuple[SignalSource, Form]]] = {
    "states": states(),
    "bfloat16_states": states(torch.bfloat16),
    "logits": lambda teacher: (teacher, LogitsForm(tiny.VOCAB, DOUBLE)),
    "top_k": lambda teacher: (
        SparseTeacher(teacher, recipe.TopKSignal(k=20), 1),
        TopKForm(20, 1.0, tiny.VOCAB, DOUBLE),
    ),
    "sampled": lambda teacher: (
        SparseTeacher(teacher, recipe.SampledSignal(draws=30), 1),
        DrawsForm(30, 1.0, tiny.VOCAB, 1, DOUBLE),
    ),
}
every_form = pytest.mark.parametrize("form", FORMS)


def behind(folder: Path, form: str, **options: Any) -> tuple[CachedTeacher, Counting, SignalSource]:
    asked, kept_as = FORMS[form](local())
    counting = Counting(asked)
    return (
        CachedTeacher(counting, kept_as, Store(folder, {"form": form}, os.urandom(4).hex()), **options),
        counting,
        asked,
    )


def dense(signal: TeacherSignal) -> torch.Tensor:
    """What a signal says of each token of the vocabulary, as far as it does, [batch, response, vocab]."""
    match signal:
        case Live(hidden, head):
            return head(hidden).log_softmax(-1)
        case Dense(logits):
            return logits.log_softmax(-1)
        case TopK(ids, log_probs):
            return torch.zeros(*ids.shape[:2], tiny.VOCAB, dtype=DOUBLE).scatter_add_(
                -1, ids, log_probs.exp().to(DOUBLE)
            )
        case Sampled(ids, weights):
            return torch.zeros(*ids.shape[:2], tiny.VOCAB, dtype=DOUBLE).scatter_add_(-1, ids, weights.to(DOUBLE))


@every_form
def test_what_is_read_is_what_is_said(tmp_path: Path, form: str) -> None:
    """The first time and the second, in other company and with other padding; and the teacher is asked once."""
    cached, counting, asked = behind(tmp_path, form)
    batch = tiny.batch(LENGTHS)
    expected = dense(asked.signal(batch))[batch.response_mask]
    tolerance = {"bfloat16_states": 0.1, "top_k": 5e-4}.get(form, 1e-12)
    for _ in range(2):
        found = dense(cached.signal(batch))[batch.response_mask]
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    first = dense(cached.signal(batch))
    padded = tiny.batch(LENGTHS, extra_left=3, extra_right=2)
    again = dense(cached.signal(padded))
    assert torch.equal(again[padded.response_mask], first[batch.response_mask])
    some = rows_of(batch, [2, 0])
    assert torch.equal(dense(cached.signal(some))[some.response_mask], torch.cat([first[2, :9], first[0, :7]]))
    assert counting.asked == list(batch.example_ids)
    assert (cached.count.asked, cached.count.read, cached.count.asked_tokens) == (4, 14, batch.num_tokens)


@every_form
def test_padding_says_nothing(tmp_path: Path, form: str) -> None:
    cached, _, _ = behind(tmp_path, form)
    batch = tiny.batch(LENGTHS, extra_right=3)
    said = cached.signal(batch)
    tensor = said.hidden if isinstance(said, Live) else next(iter(vars(said).values()))
    assert tensor.shape[:2] == batch.response_mask.shape
    assert not tensor[~batch.response_mask].any()


def test_only_rows_that_are_not_there_are_asked_about(tmp_path: Path) -> None:
    cached, counting, asked = behind(tmp_path, "states")
    batch = tiny.batch(LENGTHS)
    cached.signal(rows_of(batch, [1, 3]))
    said = cached.signal(batch)
    assert counting.asked == [batch.example_ids[at] for at in (1, 3, 0, 2)]
    torch.testing.assert_close(dense(said)[batch.response_mask], dense(asked.signal(batch))[batch.response_mask])


def test_a_row_twice_in_a_batch_is_asked_about_once(tmp_path: Path) -> None:
    cached, counting, _ = behind(tmp_path, "sampled")
    batch = rows_of(tiny.batch(LENGTHS), [0, 0, 2])
    said = dense(cached.signal(batch))
    assert len(counting.asked) == 2
    assert torch.equal(said[0], said[1])


def test_another_run_reads_what_this_one_has_asked(tmp_path: Path) -> None:
    first, _, _ = behind(tmp_path, "top_k")
    batch = tiny.batch(LENGTHS)
    said = first.signal(batch)
    second, counting, _ = behind(tmp_path, "top_k")
    assert torch.equal(dense(second.signal(batch)), dense(said))
    assert counting.asked == []
    assert 0 < second.count.others_seconds <= first.count.seconds  # of each row its share
    assert first.count.others_seconds == 0


def test_a_row_is_known_by_its_tokens_alone(tmp_path: Path) -> None:
    batch = tiny.batch(LENGTHS)
    padded = tiny.batch(LENGTHS, extra_left=1, extra_right=4)
    assert digests_of(batch) == digests_of(replace(padded, example_ids=("other",) * 4))
    rows = rollouts.rows()
    (together,) = batches(rows, len(rows), 0)
    assert digests_of(together) == [digest_of(row) for row in rows]
    row = rows[0]
    moved = replace(
        row, prompt_ids=(*row.prompt_ids, row.response_ids[0]), response_ids=row.response_ids[1:]
    )  # the same tokens, cut elsewhere
    assert digest_of(moved) != digest_of(row)


def test_draws_belong_to_a_rows_tokens_and_the_seed() -> None:
    teacher, batch = local(), tiny.batch(LENGTHS)
    spec = recipe.SampledSignal(draws=30)
    said = dense(SparseTeacher(teacher, spec, 1).signal(batch))
    alone = rows_of(batch, [2])
    assert torch.equal(dense(SparseTeacher(teacher, spec, 1).signal(alone))[0], said[2, :9])
    assert not torch.equal(dense(SparseTeacher(teacher, spec, 2).signal(batch)), said)


def test_what_a_student_writes_is_kept_apart_or_not_at_all(tmp_path: Path) -> None:
    buffer = Store(tmp_path / "buffer", {"form": "states"}, "run")
    cached, counting, _ = behind(tmp_path / "shared", "states", buffer=buffer)
    batch = tiny.batch(LENGTHS)
    for _ in range(2):
        cached.signal(replace(batch, again="never"))
    assert (len(counting.asked), len(cached.store), len(buffer)) == (8, 0, 0)
    assert cached.count.asked_tokens == 2 * batch.num_tokens
    for _ in range(2):
        cached.signal(replace(batch, again="in_this_run"))
    assert (len(counting.asked), len(cached.store), len(buffer)) == (12, 0, 4)
    without, counting, _ = behind(tmp_path / "shared", "states")
    for _ in range(2):
        without.signal(replace(batch, again="in_this_run"))
    assert (len(counting.asked), len(without.store)) == (8, 0)


def test_a_run_that_goes_on_has_its_counts_and_sees_what_it_saw_of_both_stores(tmp_path: Path) -> None:
    def begun(writer: str) -> tuple[CachedTeacher, Counting]:
        buffer = Store(tmp_path / "buffer", {"form": "states"}, writer)
        cached, counting, _ = behind(tmp_path / "shared", "states", buffer=buffer)
        return cached, counting

    batch = tiny.batch(LENGTHS)
    first, second = rows_of(batch, [0, 1]), rows_of(batch, [2, 3])
    killed, _ = begun("killed")
    for again in ("anywhere", "in_this_run"):
        killed.signal(replace(first, again=again))
    state = killed.state_dict()
    for again in ("anywhere", "in_this_run"):
        killed.signal(replace(second, again=again))
    resumed, counting = begun("resumed")
    resumed.load_state_dict(state)
    assert resumed.count == Count(**state["count"])
    assert (resumed.count.asked, resumed.count.asked_tokens) == (4, 2 * first.num_tokens)
    for again in ("anywhere", "in_this_run"):
        resumed.signal(replace(batch, again=again))
    assert counting.asked == 2 * [batch.example_ids[at] for at in (2, 3)]
    assert resumed.count.others_seconds == 0


def test_a_full_disk_is_told_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cached, _, asked = behind(tmp_path, "states")
    batch = tiny.batch(LENGTHS)
    cached.signal(rows_of(batch, [0]))

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(3):
        said = cached.signal(batch)
        torch.testing.assert_close(dense(said)[batch.response_mask], dense(asked.signal(batch))[batch.response_mask])
    assert capsys.readouterr().err.count("No space left on device; from here on nothing more is kept") == 1
    assert not cached.keeps_all
    assert (cached.count.asked, cached.count.read) == (10, 3)


# --- The model is let go ----------------------------------------------------------------------------------------------


def test_a_teacher_that_is_let_go_leaves_memory_and_comes_back(tmp_path: Path) -> None:
    loads: list[int] = []

    def load() -> Family:
        loads.append(1)
        return model()

    teacher = LocalTeacher(model(), load)
    batch = tiny.batch(LENGTHS)
    expected = teacher.signal(batch).hidden
    layer = weakref.ref(teacher.family.model.model.layers[0])
    head = teacher.family.head.weight
    assert teacher.unload()
    gc.collect()
    assert layer() is None
    assert not teacher.is_loaded
    assert teacher.head_on(torch.device("cpu")).weight is head
    assert not teacher.unload()
    assert loads == []
    assert torch.equal(teacher.signal(batch).hidden, expected)
    assert (loads, teacher.is_loaded) == ([1], True)
    assert teacher.head_on(torch.device("cpu")).weight is teacher.family.head.weight  # and the old one is gone
    assert not any(p.requires_grad for p in teacher.family.parameters())
    assert not teacher.family.training


def test_a_teacher_that_nobody_can_load_again_stays() -> None:
    teacher = local()
    assert not teacher.unload()
    assert teacher.is_loaded


def test_a_stream_is_taught_when_each_of_its_rows_was_drawn_once(tmp_path: Path) -> None:
    cached, _, _ = behind(tmp_path, "states")
    rows = rollouts.rows()
    source = DatasetSource(rows, seed=1, pad_id=0)
    (spec,) = recipes.kd().stage.streams
    stream = LiveStream(spec, source, cached, ())
    steps = 0
    while not stream.is_taught:
        for batch in source.next(Share(2, 2)):
            cached.signal(batch)
        steps += 1
    assert steps == -(-len(rows) // 2)
    assert all(digest_of(row) in cached.store for row in rows)
    assert not LiveStream(spec, source, local(), ()).is_taught


# --- From a recipe ----------------------------------------------------------------------------------------------------


def caches(folder: Path, made: recipe.Recipe) -> Caches:
    teacher = local()
    teaching = Teaching(teacher, Remembering(teacher), tiny.VOCAB, "", 0)
    return Caches(made.stage, teaching, Runtime(torch.device("cpu"), DOUBLE), folder / "run", seed=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(folder: Path, *, steps: int = 100, method: str = "kd", cache: Any = "auto", **settings: Any) -> recipe.Recipe:
    teacher = folder / "teacher"
    if not teacher.exists():
        tiny.save(tiny.llama(1, layers=2), teacher)
    base = getattr(recipes, method)(**settings)
    stage = base.stage.model_copy(
        update={
            "teacher": recipe.Teacher.model_validate({"model": str(teacher), "cache": cache}),
            "budget": recipe.Budget(steps=steps),
        }
    )
    return base.model_copy(update={"stages": (stage,)})


def teacher_of(made: recipe.Recipe, folder: Path) -> SignalSource:
    own = caches(folder, made)
    return own.behind(made.stage.streams[0], own.teaching.teacher, rollouts.rows())


def test_auto_keeps_what_a_run_comes_to_twice_and_always_all(folder: Path) -> None:
    count, batch = len(rollouts.rows()), recipes.kd().stage.batch.size
    once, twice = made(folder, steps=count // batch), made(folder, steps=count // batch + 1)
    assert isinstance(teacher_of(once, folder), LocalTeacher)
    own = caches(folder, once)
    own.behind(once.stage.streams[0], own.teaching.teacher, rollouts.rows())
    assert "teacher.cache=always" in own.left_out["data"]
    assert isinstance(teacher_of(made(folder, cache="never"), folder), LocalTeacher)
    assert not (folder / "caches").exists()
    assert isinstance(teacher_of(twice, folder), CachedTeacher)
    assert isinstance(teacher_of(once, folder), LocalTeacher)  # whatever another run has kept
    assert isinstance(teacher_of(made(folder, steps=1, cache="always"), folder), CachedTeacher)


@pytest.mark.parametrize(
    ("budget", "again"),
    [
        ({"steps": 5}, False),
        ({"steps": 6}, True),
        ({"epochs": 1.0}, False),
        ({"epochs": 1.5}, True),
        ({"seconds": 1.0}, True),
        ({"tokens": 5}, True),
        ({"flops": 1.0}, True),
    ],
)
def test_whether_rows_come_again(budget: dict[str, Any], again: bool) -> None:
    stage = recipes.kd().stage.model_copy(update={"budget": recipe.Budget(**budget), "batch": recipe.Batching(size=2)})
    assert comes_again(stage, 10) == again


def test_each_cache_has_a_folder_and_each_difference_another(folder: Path) -> None:
    def place(**settings: Any) -> str:
        own = made(folder, **settings)
        cached = teacher_of(own, folder)
        assert isinstance(cached, CachedTeacher)
        return cached.store.folder.name

    one = place()
    assert one == place(divergence="reverse_kl")  # what is asked is the same
    others = [
        place(cache={"when": "auto", "form": "states"}),
        place(cache={"when": "auto", "form": "logits"}),
        place(signal="top_k"),
        place(signal={"name": "top_k", "k": 5}),
        place(signal="sampled"),
        place(signal={"name": "sampled", "draws": 5}),
    ]
    tiny.save(tiny.llama(2, layers=2), folder / "teacher")  # other weights by the same name
    others.append(place())
    assert len({one, *others}) == 8
    assert all(name.startswith("teacher-") for name in others)


def test_all_that_a_row_depends_on_beside_its_tokens_is_in_its_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these changes what is read or what it means, so no two have a key in common."""

    def key(change: Mapping[str, Any] = {}, *, held: Mapping[str, Any] = {}, **settings: Any) -> dict[str, Any]:
        own = made(folder, **settings)
        teacher = own.stage.teacher.model_copy(update=dict(held))  # type: ignore[union-attr]
        of = replace(caches(folder, own), stage=own.stage.model_copy(update={"teacher": teacher}), **change)
        return of.key_of(of.stage.streams[0], of.form_of(of.stage.streams[0]))

    teaching = caches(folder, made(folder)).teaching
    float32 = Runtime(torch.device("cpu"), torch.float32)
    keys = [key(signal=signal) for signal in ("logits", "top_k", "sampled")]
    warmer = recipe.ForwardKL(temperature=2.0)
    keys += [key(signal={"name": name, "temperature": 2.0}, divergence=warmer) for name in ("top_k", "sampled")]
    keys += [key({"seed": 2}, signal="sampled")]
    keys += [key({"runtime": float32}), key({"teaching": replace(teaching, vocab_size=tiny.VOCAB - 1)})]
    keys += [key(held={"dtype": "bfloat16"}), key(held={"quantise": "int8"})]
    monkeypatch.setattr(caching, "VERSION", caching.VERSION + 1)
    keys += [key()]
    with (folder / "teacher" / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    keys += [key()]
    assert all(one != other for at, one in enumerate(keys) for other in keys[:at])
    assert key(held={"device": "cpu"}) == keys[-1]  # where it is held changes nothing


def test_a_base_is_known_by_its_bits_and_a_hub_model_by_its_revision(folder: Path) -> None:
    stage = made(folder).stage

    def key(**update: Any) -> dict[str, Any]:
        own = caches(folder, made(folder))
        own.stage = stage.model_copy(update=update)
        return own.key_of(own.stage.streams[0], own.form_of(own.stage.streams[0]))

    def base(bits: str) -> dict[str, Any]:
        adapter = {"kind": "lora", "quantise_base": bits}
        student = recipe.PretrainedStudent.model_validate({"model": str(folder / "teacher"), "adapter": adapter})
        return key(teacher=recipe.BaseTeacher(), student=student)

    keys = [key(), base("none"), base("nf4"), base("int8")]
    keys += [key(teacher=recipe.Teacher(model="some/model", revision=of)) for of in (None, "one", "two")]
    assert all(one != other for at, one in enumerate(keys) for other in keys[:at])


def test_a_named_folder_of_another_teacher_is_refused_by_what_differs(folder: Path) -> None:
    named = {"when": "auto", "folder": str(folder / "mine")}
    assert isinstance(teacher_of(made(folder, cache=named), folder), CachedTeacher)
    tiny.save(tiny.llama(2, layers=2), folder / "teacher")
    with pytest.raises(
        CacheError, match=r"mine is the cache of something else, made with .*teacher: weights is \w{12}\.\.\., and"
    ):
        teacher_of(made(folder, cache=named), folder)


def test_what_the_disk_has_no_room_for_is_not_begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=caching.LEAVE_FREE + 1000)
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        CacheError, match=r"would take about 0.\d MB more, and its disk has 268.4 MB free, where 268.4 MB"
    ):
        teacher_of(made(folder), folder)
    usage.free = caching.LEAVE_FREE + 10**6
    assert isinstance(teacher_of(made(folder), folder), CachedTeacher)


@every_form
def test_the_estimate_of_bytes_is_about_what_is_written(tmp_path: Path, form: str) -> None:
    cached, _, _ = behind(tmp_path, form)
    rows = rollouts.rows()
    for batch in batches(rows, 4, 0):
        cached.signal(batch)
    cached.store.close()
    size = sum(file.stat().st_size for file in tmp_path.glob("*.rows")) + sum(
        file.stat().st_size for file in tmp_path.glob("*.index")
    )
    expected = estimate(cached.form, rows)
    if form == "sampled":  # a random model's draws are all distinct, a trained one's a quarter
        assert expected < size < 4 * expected
    else:
        assert size == pytest.approx(expected, rel=1e-9)
    assert estimate(cached.form, rows, len(rows)) == 0


def test_an_estimate_goes_by_lengths_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows that become longer, or are sorted, the first ones would say too little."""
    monkeypatch.setattr(caching, "SAMPLE", 10)
    (short, *_), form = rollouts.rows(), LogitsForm(tiny.VOCAB, DOUBLE)
    rows = [replace(short, response_ids=(1,) * length) for length in range(1, 101)]
    exact = 100 * caching.RECORD.itemsize + form.bytes_per_token * sum(range(1, 101))
    assert estimate(form, rows) == pytest.approx(exact, rel=0.1)
    assert estimate(form, rows, 40) == pytest.approx(0.6 * exact, rel=0.1)


def test_a_fine_tuned_student_is_given_what_its_teachers_rows_took_as_well(tmp_path: Path) -> None:
    """Its budget is the student's training, the writing of its text, and what was asked before the run."""
    made = recipes.kd().model_copy(update={"baseline": "equal_time_sft"})
    bench = SimpleNamespace(recipe=made, run=Run(tmp_path), runtime=Runtime(torch.device("cpu"), DOUBLE))
    bench.run.write("cost", {"training_s": 8.0, "teacher_text_s": 4.0, "teacher_cache_s": 2.0})
    _, baseline = stage._trainings(bench)  # type: ignore[arg-type]
    assert baseline.stage.budget == recipe.Budget(seconds=14.0)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "on_policy": ({}, "its signal is token_logprobs"),
    "feature_kd": ({}, "it looks inside the teacher"),
    "minillm": ({}, "a student writes its text anew each time"),
}


@pytest.mark.parametrize("method", REFUSED)
def test_always_is_refused_where_nothing_can_be_kept(method: str) -> None:
    settings, reason = REFUSED[method]
    stage = getattr(recipes, method)(**settings).stage.model_dump()
    teacher = stage["teacher"] | {"cache": "always"}
    with pytest.raises(
        ValueError, match=rf"teacher.cache is always, and nothing .*{reason}.* Set teacher.cache to auto"
    ):
        recipe.Stage.model_validate(stage | {"teacher": teacher})
    assert recipe.Stage.model_validate(stage | {"teacher": teacher | {"cache": "auto"}})


def test_a_replay_buffer_is_kept_in_the_runs_folder_while_it_runs(folder: Path) -> None:
    own = caches(folder, made(folder, method="distillm"))
    (spec,) = own.stage.streams
    cached = own.behind(spec, own.teaching.teacher, rollouts.rows())
    assert isinstance(cached, CachedTeacher)
    assert [store.folder for store in cached.stores][1:] == [folder / "run" / "replayed"]
    own.close()
    assert (folder / "run" / "replayed").exists()  # a run that is stopped goes on
    own.forget_replayed()
    assert not (folder / "run" / "replayed").exists()
