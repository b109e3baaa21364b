"""Published figures: the shipped files, the user's own, and both beside ours."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.errors import ConfigError
from potstill.evaluation.suites import SUITES, Settings
from potstill.recipes import METHODS
from potstill.reporting.published import HOW_SURE, SHIPPED, Ours, Published, beside, load_published, markdown
from potstill.reporting.published.schema import Asked

DOCS = Path(__file__).parents[3] / "docs" / "reference" / "published.md"
HEAD = """\
about: a trial
sources:
  paper: {title: A paper, url: "https://example.org"}
models:
  Small: [small-hub/small]
tables:
  - source: paper
    where: Table 1
    suite: SUITE
    figure: FIGURE
    dataset: dolly
    split: valid
    num_items: 500
    unit: per cent
    scale: SCALE
    settings: of our own making
    asked: {temperature: 1, seeds: [10, 20], no_repeat_ngram: 6}
    figures:
"""
ROWS = (
    "{method: sft, model: Small, value: 20.5, tag: V}",
    "{method: kd, model: Small, teacher: Large, value: 21.0, deviation: 0.5, tag: P}",
    "{method: kd, model: Large, value: 22.25, tag: null, note: after a night}",
)
FIRST = HEAD.count("\n") + 1  # the line of the first figure


def text_of(*rows: str, suite: str = "dolly", figure: str = "rouge_l_sampled", scale: object = 1) -> str:
    head = HEAD.replace("SUITE", suite).replace("FIGURE", figure).replace("SCALE", str(scale))
    return head + "".join(f"      - {row}\n" for row in rows or ROWS)


def written(folder: Path, text: str) -> str:
    (folder / "figures.yaml").write_text(text, encoding="utf-8")
    return str(folder / "figures.yaml")


@cache
def shipped(name: str) -> tuple[Published, ...]:
    return load_published(name)


def refused(folder: Path, text: str) -> list[tuple[int, str, str]]:
    """Line, field and cause of every problem that a file is refused for."""
    path = written(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_published(path)
    found = []
    for problem in caught.value.problems:
        file, line, _ = problem.where.rsplit(":", 2)
        assert file == path
        found.append((int(line), problem.key, problem.cause))
    return found


def ours(**changed: Any) -> Ours:
    asked = {"temperature": 1.0, "seeds": [10, 20], "no_repeat_ngram": 6, "template": "none"}
    one = Ours("dolly", "rouge_l_sampled", "kd", "small-hub/small", "Large", 21.5, 20.0, 23.0, 500, asked)
    return replace(one, **changed)


# --- The shipped files ------------------------------------------------------------------------------------------------


def test_every_shipped_file_loads_whole() -> None:
    found = {name: len(shipped(name)) for name in SHIPPED}
    assert found == {"distilling_step_by_step": 48, "gpt2_cnn_dailymail": 24, "minillm": 321, "takd": 8}
    assert [*shipped("all")] == [one for name in SHIPPED for one in shipped(name)]


def test_shipped_figures_are_of_suites_and_recipes_that_there_are() -> None:
    compared = [one for one in shipped("all") if one.suite is not None]
    assert len(compared) == 204
    for one in compared:
        suite = SUITES[str(one.suite)]
        assert one.figure in suite.protocol.headline
        assert one.table.dataset == suite.dataset
    known = {one.method for one in shipped("minillm")} & set(METHODS)
    assert known == {"sft", "kd", "seqkd", "minillm", "gkd", "distillm", "abkd"}


def test_shipped_values_are_in_the_unit_of_our_figures() -> None:
    for one in shipped("all"):
        if one.suite is not None:
            low, high = (0.3, 1.0) if one.figure.startswith("accuracy") else (5.0, 50.0)
            assert low < one.value < high, (one.suite, one.row)
    assert _value("distilling_step_by_step", "esnli", "sft") == 0.8838
    assert _value("gpt2_cnn_dailymail", "cnn_dailymail", "teacher") == 36.22
    assert _value("minillm", "dolly", "sft") == 23.3


def _value(name: str, suite: str, method: str) -> float:
    return next(one.value for one in shipped(name) if (one.suite, one.method) == (suite, method))


def test_what_the_assistants_readme_quotes_of_minillm_is_what_its_file_has() -> None:
    papers = {(x.method, x.row.model): x.value for x in shipped("minillm")[:31]}
    quoted = [one for one in shipped("takd") if "paper has" in (one.row.note or "")]
    assert len(quoted) == 4
    assert all(one.row.note == f"MiniLLM's paper has {papers[one.method, one.row.model]}" for one in quoted)


def test_what_is_from_memory_is_said_to_be() -> None:
    tags = Counter(one.row.tag for one in shipped("all"))
    assert tags == {"M": 208, "V": 173, "I": 14, None: 6}
    assert f"{sum(tags.values())} figures {tags['M']} are `M`" in DOCS.read_text(encoding="utf-8")
    shown = markdown(beside(shipped("minillm"), [ours(model="gpt2")]))
    assert HOW_SURE["M"] in next(line for line in shown.splitlines() if line.startswith("| kd | GPT-2 120M"))


def test_how_models_were_asked_is_said_in_the_words_of_a_suite() -> None:
    assert set(Asked.model_fields) <= {field.name for field in fields(Settings)}


# --- A user's file ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=st.lists(st.integers(-10_000, 10_000), min_size=1, max_size=5), scale=st.sampled_from([1, 100, 0.01, 2.5])
)
def test_a_file_reads_as_it_was_written(tmp_path: Path, values: list[int], scale: float) -> None:
    rows = [f"{{method: m{at}, model: Small, value: {x / 100}, tag: V}}" for at, x in enumerate(values)]
    found = load_published(written(tmp_path, text_of(*rows, scale=scale)))
    assert [one.method for one in found] == [f"m{at}" for at in range(len(values))]
    assert [one.value for one in found] == pytest.approx([x / 100 * scale for x in values])


WRONG = {
    "value": (".nan", "must be a number, not nan"),
    "method": ("7", "must be text, not 7"),
    "tag": ("Z", "must be one of P, V, I, C, R, M, not 'Z'"),
    "deviation": ("-1", "must be a number of at least 0, not -1"),
    "colour": ("red", "unknown key"),
    "teacher": ("[Large]", "must be text, not ['Large']"),
}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.sets(st.integers(0, 3), min_size=1), field=st.sampled_from(sorted(WRONG)))
def test_every_mistake_is_named_by_line_and_field(tmp_path: Path, at: set[int], field: str) -> None:
    rows = []
    for number in range(4):
        row = {"method": f"m{number}", "model": "Small", "value": "1.5", "tag": "V"}
        row |= {field: WRONG[field][0]} if number in at else {}
        rows.append("{" + ", ".join(f"{key}: {value}" for key, value in row.items()) + "}")
    expected = [(FIRST + n, f"tables.0.figures.{n}.{field}", WRONG[field][1]) for n in sorted(at)]
    assert refused(tmp_path, text_of(*rows)) == expected


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", '"23"', "true", "null", "[1]"])
def test_a_value_is_a_finite_number(tmp_path: Path, value: str) -> None:
    ((line, field, cause),) = refused(tmp_path, text_of(f"{{method: m, model: Small, value: {value}, tag: V}}"))
    assert (line, field) == (FIRST, "tables.0.figures.0.value")
    assert cause.startswith("must be a number, not")


@pytest.mark.parametrize(
    ("old", "new", "field", "cause"),
    [
        ("suite: dolly", "suite: doly", "tables.0.suite", "no suite is called 'doly'"),
        ("rouge_l_sampled", "rougeL", "tables.0.figure", "dolly has no figure 'rougeL'"),
        ("    scale: 1\n", "", "tables.0.scale", "is missing"),
        ("    scale: 1\n", "    scale: 0\n", "tables.0.scale", "must be a number above 0, not 0"),
        ("source: paper", "source: papers", "tables.0.source", "no source is called 'papers'"),
        ("  Small: [", "  Smal: [", "models.Smal", "is the model or teacher of no figure"),
        ("about: a trial", "on: a trial", "on", "unknown key"),
        ("title:", "titel:", "sources.paper.titel", "unknown key"),
        ("temperature: 1", "temperatur: 1", "tables.0.asked.temperatur", "unknown key"),
        ("num_items: 500", "num_items: 0", "tables.0.num_items", "must be a whole number of at least 1, not 0"),
        ("method: sft, model: Small", "method: kd, model: Large", "tables.0.figures.2", "is of the same method"),
    ],
)
def test_each_mistake_of_a_file_is_named(tmp_path: Path, old: str, new: str, field: str, cause: str) -> None:
    rows = [row.replace(", note: after a night", "") for row in ROWS]
    text = text_of(*rows).replace(old, new, 1)
    assert text != text_of(*rows)
    found = {name: (line, said) for line, name, said in refused(tmp_path, text)}
    line, said = found[field]
    assert said.startswith(cause)
    if new:  # what is missing stands in no line, but its table does
        assert field.rsplit(".", 1)[-1] in text.splitlines()[line - 1] or text.splitlines()[line - 1].strip()[0] == "-"


def test_all_mistakes_are_named_at_once_from_top_to_bottom(tmp_path: Path) -> None:
    text = text_of().replace("title:", "titel:").replace("suite: dolly", "suite: x").replace("tag: P", "tag: p")
    found = refused(tmp_path, text)
    assert [field for _, field, _ in found] == [
        "sources.paper.title",
        "sources.paper.titel",
        "tables.0.suite",
        "tables.0.figures.1.tag",
    ]
    assert [line for line, *_ in found] == sorted(line for line, *_ in found)


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [\n", "\t- x", "about: \x00"])
def test_what_is_no_such_file_is_refused_in_its_own_words(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_published(path)
    assert path in caught.value.cause
    assert "recipe" not in str(caught.value)


def test_a_name_that_is_neither_file_nor_shipped_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'minilm'\n.*Did you mean 'minillm'"):
        load_published("minilm")
    for name in ("", "minillm,", str(tmp_path), "x" * 5000):
        with pytest.raises(ConfigError, match="no file of published figures"):
            load_published(name)


def test_several_files_are_read_in_their_order(tmp_path: Path) -> None:
    path = written(tmp_path, text_of())
    found = load_published(f"takd, {path}, takd")
    assert [one.source.title for one in found] == ["LMOps-TA-Distillation, README"] * 8 + ["A paper"] * 3


def test_the_file_that_the_documentation_shows_loads(tmp_path: Path) -> None:
    shown = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(shown) == 1
    assert [one.value for one in load_published(written(tmp_path, shown[0]))] == [0.412, 0.437]


# --- Beside ours ------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> tuple[Published, ...]:
    return load_published(written(tmp_path, text_of()))


KINDS = st.tuples(
    st.sampled_from(["dolly", "vicuna"]),
    st.sampled_from(["rouge_l_sampled", "rouge_l_greedy"]),
    st.sampled_from(["sft", "kd", "gkd"]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kinds=st.lists(KINDS, max_size=6))
def test_every_published_method_has_a_line_and_each_of_ours_its_own(
    three: tuple[Published, ...], kinds: list[tuple[str, str, str]]
) -> None:
    mine = [ours(suite=s, figure=f, method=m, mean=float(at)) for at, (s, f, m) in enumerate(kinds)]
    found = beside(three, mine)
    asked = [one for one in mine if (one.suite, one.figure) == ("dolly", "rouge_l_sampled")]
    pairs = [(at, one) for at, theirs in enumerate(three) for one in asked if one.method == theirs.method]
    assert [(three.index(x.published), x.ours) for x in found if x.ours] == pairs
    alone = [three.index(x.published) for x in found if x.ours is None]
    matched = {at for at, _ in pairs}
    assert alone == ([at for at in range(3) if at not in matched] if asked else [])
    assert all(not line.differs for line in found if line.ours is None)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ()),
        ({"model": "SMALL"}, ()),
        ({"model": "other"}, ("student: ours other, theirs Small",)),
        ({"teacher": None}, ("teacher: ours none, theirs Large",)),
        ({"num_items": 100}, ("items: ours 100, theirs 500",)),
        ({"num_items": None}, ()),
        ({"settings": None}, ("how ours was asked is not known",)),
        (
            {"settings": {"temperature": 1.0, "seeds": [10], "no_repeat_ngram": 0}},
            ("no repeat ngram: ours 0, theirs 6", "seeds: ours 10, theirs 10, 20"),
        ),
        (
            {"settings": {"temperature": 1.0, "seeds": [], "no_repeat_ngram": 6}},
            ("temperature: ours greedy, theirs 1",),
        ),
    ],
)
def test_what_is_not_the_same_is_said(
    three: tuple[Published, ...], changed: dict[str, Any], words: tuple[str, ...]
) -> None:
    line = beside(three, [ours(**changed)])[1]
    assert (line.published.row.model, line.published.method) == ("Small", "kd")
    assert line.differs == words


def test_a_teacher_that_only_we_had_is_said_and_one_that_nobody_had_is_not(three: tuple[Published, ...]) -> None:
    assert beside(three, [ours(method="sft", teacher=None)])[0].differs == ()
    line = beside(three, [ours(model="Large", teacher="Huge")])[2]
    assert line.differs == ("teacher: ours Huge, theirs none",)


def test_another_split_or_data_set_is_said(tmp_path: Path) -> None:
    mine = ours(suite="anli_r1", figure="accuracy_generated", num_items=500)
    text = text_of(suite="anli_r1", figure="accuracy_generated", scale=0.01)
    for old, new, words in (
        ("dataset: dolly", "dataset: anli", "split: ours r1_dev, theirs valid"),
        ("dataset: dolly", "dataset: esnli", "data: ours anli, theirs esnli"),
    ):
        line = beside(load_published(written(tmp_path, text.replace(old, new))), [mine])[1]
        assert line.differs == (words,)


def test_a_greedy_figure_of_a_suite_that_also_samples_is_greedy(tmp_path: Path) -> None:
    text = text_of(figure="rouge_l_greedy").replace("temperature: 1", "temperature: 0")
    line = beside(load_published(written(tmp_path, text)), [ours(figure="rouge_l_greedy")])[1]
    assert line.differs == ()


def test_the_table_has_both_in_one_unit_and_says_where_it_is_from(tmp_path: Path) -> None:
    path = written(tmp_path, text_of(suite="esnli", figure="accuracy_generated", scale=0.01))
    mine = ours(suite="esnli", figure="accuracy_generated", mean=0.31, low=0.28, high=0.34, teacher="a|<b>")
    shown = markdown(beside(load_published(path), [mine]))
    head, _, sft, kd, other = [line for line in shown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (head, sft, kd, other)]
    assert {len(row) for row in cells} == {8}
    assert [row[3] for row in cells[1:]] == ["0.2050", "0.2100 ± 0.0050", "0.2225"]
    assert [row[5] for row in cells[1:]] == ["", "0.310 [0.280, 0.340]", "0.310 [0.280, 0.340]"]
    assert cells[3][6].startswith("after a night; student: ours")
    assert "teacher: ours a\\|&lt;b>, theirs Large" in cells[2][6]
    assert "- [1] A paper, Table 1, https://example.org. dolly valid, 500 items; per cent, here times 0.01;" in shown


def test_nothing_to_set_beside_is_no_table(three: tuple[Published, ...]) -> None:
    assert markdown(beside(three, [ours(suite="vicuna")])) == ""
