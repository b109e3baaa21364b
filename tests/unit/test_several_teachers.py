"""Several teachers in one stage: who is asked what, what their parts of the loss are, and what a dropped one leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill import assembly, recipe, recipe_io, streams
from potstill.assembly import Teaching
from potstill.data.prepare import prepare
from potstill.errors import ConfigError, TeacherError
from potstill.features.choosing import choose
from potstill.features.matching import parameters_of
from potstill.features.selection import Model, Wanted, load
from potstill.recipe import Stage
from potstill.recipes import METHODS
from potstill.sources.source import Share
from potstill.teachers.local import LocalTeacher, Remembering
from potstill.training.dropping import dropped
from potstill.training.runtime import Runtime
from potstill.training.step import StepResult, train_step
from tests import rollouts, tiny
from tests.conftest import REPOSITORY
from tests.rollouts import RUNTIME, VOCAB
from tests.unit.test_streams import SEED, STUDENT, parts

FIRST, SECOND = rollouts.gpt2(2), rollouts.gpt2(5)
KL = {"objective": "forward_kl"}


def asking(name: str, teacher: str | None = None, **settings: Any) -> dict[str, Any]:
    return {"name": name, "signal": "logits", "teacher": teacher, "terms": [KL]} | settings


def weighted(name: str, teacher: str | None, coefficient: float, **settings: Any) -> dict[str, Any]:
    return asking(name, teacher, terms=[KL | {"coefficient": coefficient}], **settings)


def stage(*specs: dict[str, Any], **settings: Any) -> Stage:
    given = {"teacher": "a", "student": "b", "streams": list(specs), "budget": {"steps": 4}, "batch": {"size": 6}}
    return Stage.model_validate(given | settings)


def of_two(folder: Path, made: Stage, second: Any = SECOND) -> streams.Parts:
    """The parts of a stage whose teacher is ``FIRST``, and whose further one ``other`` is ``second``."""
    first, other = LocalTeacher(FIRST), LocalTeacher(second)
    teaching = Teaching(first, Remembering(first), VOCAB, "", 0, {"other": other})
    whole = recipe.Recipe(stages=(made,))
    return replace(parts(folder, whole), teaching=teaching, plain_text={})


def gradient(
    built: Sequence[Any], out: Sequence[str] = (), size: int = 6, micro_size: int = 4
) -> tuple[StepResult, Tensor]:
    """One step that moves nothing: its figures, and the gradient it would have followed, as one vector."""
    optimizer = torch.optim.SGD(STUDENT.parameters(), lr=0.0)
    batching = recipe.Batching(size=size, micro_size=micro_size)
    result = train_step(STUDENT, STUDENT, optimizer, built, batching, 1e9, RUNTIME, 0.5, out)
    return result, torch.cat([p.grad.flatten() for p in STUDENT.parameters() if p.grad is not None])


def mean_kl(teacher: Any, rows: Sequence[Any]) -> float:
    """The mean over all response tokens of KL(teacher || student), row by row from the models' own forward."""
    found = []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        with torch.no_grad():
            log_p, log_q = (
                one.model(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
                for one in (teacher, STUDENT)
            )
        found.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return float(torch.cat(found).mean())


# --- The loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_over_the_teachers_on_the_same_rows(tmp_path: Path) -> None:
    made = stage(weighted("near", None, 0.3), weighted("far", "other", 0.9), teachers={"other": "c"})
    drawn = rollouts.data(seed=SEED).draw(Share(6, 6))
    near, far = mean_kl(FIRST, drawn), mean_kl(SECOND, drawn)
    result, _ = gradient(streams.build_streams(of_two(tmp_path, made)))
    assert abs(near - far) > 0.1
    assert result.values == pytest.approx({"near/forward_kl": near, "far/forward_kl": far}, rel=1e-12)
    assert result.loss == pytest.approx(0.3 * near + 0.9 * far, rel=1e-12)


def test_streams_on_the_data_draw_the_same_rows_at_every_step(tmp_path: Path) -> None:
    made = stage(weighted("near", None, 0.5), weighted("far", "other", 0.5, drop=0.9), teachers={"other": "c"})
    near, far = (one.source for one in streams.build_streams(of_two(tmp_path, made)))
    for _ in range(7):  # beyond an epoch of 12 rows
        assert rollouts.same(near.next(Share(4, 2), 0.0), far.next(Share(4, 2), 0.0))


def test_one_teacher_in_two_halves_is_one_teacher(tmp_path: Path) -> None:
    halves = stage(weighted("near", None, 0.5), weighted("far", "other", 0.5), teachers={"other": "c"})
    result, in_two = gradient(streams.build_streams(of_two(tmp_path, halves, second=FIRST)))
    whole, in_one = gradient(streams.build_streams(of_two(tmp_path, stage(weighted("near", None, 1.0)))))
    assert in_one.abs().max() > 1e-3
    torch.testing.assert_close(in_two, in_one, rtol=0, atol=1e-12)
    assert result.loss == pytest.approx(whole.loss, abs=1e-12)


def test_with_drop_one_teacher_in_two_halves_is_one_teacher_in_expectation(tmp_path: Path) -> None:
    """Half of the gradient where either is dropped, all of it otherwise: 1 - p + p ** 2 / 2 of it on the whole."""
    p, steps = 0.5, 400
    halves = stage(weighted("near", None, 0.5, drop=p), weighted("far", "other", 0.5, drop=p), teachers={"other": "c"})
    _, whole = gradient(streams.build_streams(of_two(tmp_path, stage(weighted("near", None, 1.0)))))
    by_dropped = {}
    for out in (frozenset[str](), frozenset({"near"}), frozenset({"far"})):
        _, by_dropped[out] = gradient(streams.build_streams(of_two(tmp_path, halves, second=FIRST)), tuple(out))
    mean = sum(by_dropped[dropped(halves.streams, 1, step)] for step in range(steps)) / steps
    assert isinstance(mean, Tensor)
    share = float((mean @ whole) / (whole @ whole))
    torch.testing.assert_close(mean, share * whole, rtol=0, atol=1e-12)
    assert share == pytest.approx(1 - p + p**2 / 2, abs=0.05)  # 4 standard errors of 400 draws from {1/2, 1}


# --- A dropped stream -------------------------------------------------------------------------------------------------


def test_a_dropped_stream_has_no_value_and_no_forward_and_its_source_moves_on(tmp_path: Path) -> None:
    made = stage(weighted("near", None, 0.3), weighted("far", "other", 0.9, drop=0.5), teachers={"other": "c"})
    built = streams.build_streams(of_two(tmp_path, made))
    calls = []
    hook = SECOND.model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    result, _ = gradient(built, ("far",))
    assert calls == []
    gradient(built)
    hook.remove()
    assert calls == [1, 1]  # two micro-batches
    rows = rollouts.data(seed=SEED).draw(Share(6, 6))
    assert result.values.keys() == {"near/forward_kl"}
    assert result.loss == pytest.approx(0.3 * mean_kl(FIRST, rows), rel=1e-12)
    assert result.response_tokens == sum(len(row.response_ids) for row in rows)
    assert [one.source.state_dict()["position"] for one in built] == [12, 12]


def test_a_dropped_streams_adaptive_schedule_hears_nothing(tmp_path: Path) -> None:
    taid = [{"objective": {"name": "interpolated_forward_kl", "t": {"name": "taid", "start": 0.2, "rate": 0.5}}}]
    made = stage(asking("near"), asking("far", "other", drop=0.5, terms=taid), teachers={"other": "c"})
    built = streams.build_streams(of_two(tmp_path, made))
    before = built[1].terms[0].state_dict()
    gradient(built, ("far",))
    assert built[1].terms[0].state_dict() == before
    gradient(built)
    assert built[1].terms[0].state_dict() != before


def test_a_dropped_streams_projection_stays_without_a_gradient(tmp_path: Path) -> None:
    """With one of 0 the optimizer's momentum would move it."""
    inside = [{"objective": {"name": "hidden_cosine", "layers": "uniform", "channels": "projection"}}]
    made = stage(asking("near"), asking("far", "other", drop=0.5, terms=inside), teachers={"other": "c"})
    built = streams.build_streams(of_two(tmp_path, made))
    (projection,) = parameters_of(built[1].matches)
    gradient(built, ("far",))
    assert projection.grad is None
    gradient(built)
    assert projection.grad is not None


# --- Who is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["teacher", "token_mixed", "speculative"])
def test_a_streams_teacher_writes_its_rollouts(tmp_path: Path, policy: str) -> None:
    rollout = rollouts.spec(policy=policy, **({"filters": ()} if policy == "teacher" else {}))
    made = stage(asking("near"), asking("own", "other", source=rollout), teachers={"other": "c"})
    given = of_two(tmp_path, made)
    asked = replace(given, asks="other")
    assert streams.writer(asked, rollout).families[-1] is SECOND  # type: ignore[attr-defined]
    assert streams.writer(given, rollout).families[-1] is FIRST  # type: ignore[attr-defined]
    _, own = streams.build_streams(given)
    seen = []
    hook = SECOND.model.base_model.register_forward_pre_hook(lambda *_: seen.append(1))
    if policy != "teacher":
        own.source.next(Share(2, 2), 0.0)
        assert seen
    else:
        card = json.loads((tmp_path / "teacher_text" / "own" / "card.json").read_text())
        assert '"c"' in json.dumps(card)
    hook.remove()


def test_the_credit_of_sampled_tokens_is_by_the_streams_teacher(tmp_path: Path) -> None:
    terms = [{"objective": "policy_gradient"}]
    own = {"source": rollouts.spec(), "signal": "token_logprobs", "terms": terms}
    made = stage(asking("near"), asking("own", "other", **own), teachers={"other": "c"})
    _, found = streams.build_streams(of_two(tmp_path, made))
    (batch,) = found.source.next(Share(4, 4), 0.0)
    by_hand = stage(asking("own", **own))
    parts_of_second = of_two(tmp_path, by_hand)
    local = LocalTeacher(SECOND)
    alone = replace(parts_of_second, teaching=Teaching(local, Remembering(local), VOCAB, "", 0))
    (expected,) = streams.build_streams(alone)[0].source.next(Share(4, 4), 0.0)
    assert batch.credit is not None
    assert expected.credit is not None
    assert torch.equal(batch.credit.advantages, expected.credit.advantages)


def test_a_stream_that_looks_inside_looks_into_its_own_teacher(tmp_path: Path) -> None:
    """Channels are chosen of it, on validation rows; those that a student was cut with are of the first alone."""
    wide = rollouts.gpt2(5, width=12)
    inside = [{"objective": {"name": "hidden_mse", "layers": "uniform", "channels": "selected"}}]
    given = of_two(tmp_path, stage(asking("near"), asking("far", "other", terms=inside), teachers={"other": "c"}), wide)
    given = replace(given, data=replace(given.data, validation=tuple(rollouts.rows())), kept_channels=range(8))
    _, (far,) = streams.build_terms(given)
    wanted = Wanted(layers=(0,), count=8)
    expected = choose(wide, rollouts.rows(), wanted, model=Model(name="c", fingerprint=""), source="")
    assert far.match is not None
    assert far.match.maps[0].indices.tolist() == list(expected.channels[0])
    assert load(tmp_path / "channels" / "far-hidden_mse.json").model.name == "c"
    kept = [{"objective": {"name": "hidden_mse", "layers": "uniform", "channels": "kept"}}]
    cut = stage(asking("near", terms=kept), asking("far", "other"), teachers={"other": "c"})
    assert streams.build_terms(replace(given, stage=cut))
    cut = stage(asking("near"), asking("far", "other", terms=kept), teachers={"other": "c"})
    with pytest.raises(ConfigError, match="channels is kept"):
        streams.build_terms(replace(given, stage=cut))


# --- From folders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, vocab) in enumerate({"a": 304, "b": 320, "c": 310}.items()):
        tiny.save(tiny.llama(seed, vocab=vocab), folder / name)
    return folder


def taught(models: Path, *, teacher: str = "a", student: str = "b", **teachers: str) -> Stage:
    specs = [asking("near"), *(asking(name, name) for name in teachers)]
    named = {name: str(models / of) for name, of in teachers.items()}
    return stage(*specs, teacher=str(models / teacher), student=str(models / student), teachers=named)


CPU = Runtime(torch.device("cpu"), torch.float32)


def test_one_model_that_is_named_twice_is_loaded_once(models: Path) -> None:
    made = taught(models, same="a", other="c", again="c")
    teaching = assembly.load_teaching(made, assembly.student_tokenizer(made, False), CPU, False)
    assert teaching is not None
    assert teaching.others["same"] is teaching.teacher
    assert teaching.others["other"] is teaching.others["again"] is not teaching.teacher
    assert len({id(family) for family in teaching.families}) == 2
    assert not any(p.requires_grad for family in teaching.families for p in family.parameters())


@pytest.mark.parametrize(
    ("teacher", "student", "other", "size"), [("b", "b", "a", 304), ("a", "b", "c", 304), ("b", "a", "c", 304)]
)
def test_all_are_compared_on_the_smallest_vocabulary_that_is_shared(
    models: Path, teacher: str, student: str, other: str, size: int
) -> None:
    made = taught(models, teacher=teacher, student=student, other=other)
    teaching = assembly.load_teaching(made, assembly.student_tokenizer(made, False), CPU, False)
    assert teaching is not None
    assert [family.vocab_size for family in teaching.families] == [size, size]
    assert (teaching.vocab_size, teaching.note) == (
        size,
        f"rows from {size} on are padding of the larger and are left out",
    )
    assert {len(teaching.named(name).family.head.weight[:size]) for name in (None, "other")} == {size}


def test_a_further_teacher_of_another_tokenizer_is_refused_by_name(models: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(models / "c", tmp_path / "foreign")
    tokenizer = tmp_path / "foreign" / "tokenizer.json"
    data = json.loads(tokenizer.read_text())
    vocab = data["model"]["vocab"]
    first, second = list(vocab)[10:12]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    tokenizer.write_text(json.dumps(data))
    made = taught(models, other=str(tmp_path / "foreign"))
    with pytest.raises(TeacherError, match=r"teachers.other, .*foreign: teacher and student have different tokenizers"):
        assembly.shared_vocabulary_of(made, assembly.student_tokenizer(made, False), False)


def test_each_teacher_is_asked_about_its_own_rows_alone(models: Path, tmp_path: Path) -> None:
    """Routing by a field: what the teachers' models are fed in some steps."""
    rows = [row | {"domain": "even" if at % 2 == 0 else "odd"} for at, row in enumerate(tiny.rows(40))]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    specs = [
        asking("evens", source={"where": {"group": "even"}, "name": "dataset"}),
        asking("odds", "other", source={"where": {"group": ["odd"]}, "name": "dataset"}),
    ]
    named = {name: str(models / of) for name, of in (("teacher", "a"), ("student", "b"))}
    data = {"path": str(file), "fields": {"group": "domain"}}
    made = stage(*specs, **named, teachers={"other": str(models / "c")}, data=data)
    tokenizer = assembly.student_tokenizer(made, False)
    teaching = assembly.load_teaching(made, tokenizer, CPU, False)
    assert teaching is not None
    prepared = prepare(made.data, tokenizer, streams=streams.views_of(made))
    student = assembly.build_student(made, CPU, teaching.vocab_size, (), False).family
    built = streams.build_streams(
        streams.Parts(made, prepared, {}, teaching, student, tokenizer, CPU, tmp_path, seed=1)
    )
    fed: dict[str, list[str]] = {"evens": [], "odds": []}
    for name, family in zip(fed, teaching.families, strict=True):

        def note(_module: Any, _args: Any, kwargs: Any, name: str = name) -> None:
            fed[name] += tokenizer.batch_decode(kwargs["input_ids"])

        family.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    for _ in range(3):
        train_step(student, student, optimizer, built, recipe.Batching(size=4), 1.0, CPU, 0.5)
    numbers = {
        name: [int(text.split("number ")[1].split(".")[0].strip()) for text in texts] for name, texts in fed.items()
    }
    assert [len(found) for found in numbers.values()] == [12, 12]
    assert {number % 2 for number in numbers["evens"]} == {0}
    assert {number % 2 for number in numbers["odds"]} == {1}


# --- What is refused --------------------------------------------------------------------------------------------------

FURTHER = {"other": "c"}
REFUSED: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "an unknown name": ([asking("near"), asking("far", "othr")], {"teachers": FURTHER}, "Name one of other"),
    "no further teachers": ([asking("near"), asking("far", "other")], {}, "who is not in teachers"),
    "whom nobody asks": ([asking("near")], {"teachers": FURTHER}, "whom no stream asks. Set teacher=other in a stream"),
    "no teacher": ([asking("far", "other")], {"teachers": FURTHER, "teacher": None}, "Set teacher"),
    "a stream that asks nothing": (
        [asking("near"), {"name": "far", "teacher": "other", "terms": [{"objective": "cross_entropy"}]}],
        {"teachers": FURTHER},
        "asks no teacher. Set its signal to logits",
    ),
    "a bad name": ([asking("near"), asking("far", "Big One")], {"teachers": {"Big One": "c"}}, "Begin with a small"),
    "the only stream": ([asking("near", drop=0.5)], {}, "is the only one, so it is never dropped"),
    "always dropped": ([asking("near"), asking("far", drop=1.0)], {}, "less than 1"),
    "plain text": (
        [asking("near", source={"name": "dataset", "view": "plain_text", "path": "t", "where": {"group": "a"}})],
        {},
        "where is only for rows",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_with_the_way_out(name: str) -> None:
    specs, settings, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        stage(*specs, **settings)


def test_text_of_a_teacher_alone_is_asking_it() -> None:
    """Without a signal: a stream that trains on what the teacher writes."""
    source = {"name": "rollout", "policy": "teacher"}
    text = {"name": "far", "teacher": "other", "source": source, "terms": [{"objective": "cross_entropy"}]}
    assert stage(asking("near"), text, teachers=FURTHER).asked_by(stage(asking("near")).streams[0]).model == "a"


def test_the_recipes_of_the_how_to_are_recipes(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "how-to" / "stages.md").read_text(encoding="utf-8")
    written = [text for text in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S) if "teachers:" in text]
    found = []
    for at, text in enumerate(written):
        (tmp_path / f"{at}.yaml").write_text(text, encoding="utf-8")
        found.append(recipe_io.load(tmp_path / f"{at}.yaml", methods=METHODS).stage)
    weighted, routed = found
    assert [(one.teacher, one.drop) for one in weighted.streams] == [(None, 0), ("far", 0.25)]
    wheres = [one.source.where for one in routed.streams if isinstance(one.source, recipe.DatasetSource)]
    assert [where and where.group for where in wheres] == [("maths", "physics"), ("code",)]


def test_teachers_are_set_by_key() -> None:
    """A key of one further teacher leaves its others as they were."""
    settings = {"assistants": [20, 15], "student.teachers.assistant": "models/medium"}
    made = recipe_io.load("dgkd", settings, methods=METHODS).stage
    assert made.teachers["assistant"] == recipe.Teacher(model="models/medium")
    assert made.teachers["teacher"] == recipe.Teacher()
    settings = {"teacher": "big", "student.teachers.teacher.revision": "v2"}
    made = recipe_io.load("dgkd", settings, methods=METHODS).stage
    assert made.teachers["teacher"] == recipe.Teacher(model="big", revision="v2")
    with pytest.raises(ConfigError, match=r"revison: unknown key. Did you mean 'revision'"):
        recipe_io.load("dgkd", {"student.teachers.teacher.revison": "v2"}, methods=METHODS)
