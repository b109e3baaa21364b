"""Broken files of named data sets and of one's own for suites: rows are counted or refused where they stand."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.catalogue import DATASETS, Item, Loaded, load
from potstill.data.reader import BadRow, read_rows
from potstill.errors import DataError
from potstill.evaluation.suites import SUITES
from potstill.evaluation.suites.items import items_of
from potstill.evaluation.suites.run import evaluate_models


def table(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


# --- named data sets: each reader's smallest file, with its third row of five broken ----------------------------------

CHOICES = {"label": ["A", "B"], "text": ["pen ~", "fish"]}
SVAMP = {"ID": "i~", "Body": "Ann has ~ pens.", "Question": "How many?", "Equation": "( 3 + 4 )", "Answer": 7.0}
NLI = {"uid": "i~", "premise": "Dog ~ runs.", "hypothesis": "It sleeps.", "label": 1, "reason": "Not said."}
CSV_NLI = {"pairID": "i~", "gold_label": "neutral", "Sentence1": "Dog ~ runs.", "Sentence2": "No.", "Explanation_1": ""}
ARTICLE = {"id": "i~", "article": "Dog ~ runs.", "highlights": "It ran."}
# data set, split, file, a row, its id, a text that it needs
READERS: list[tuple[str, str, str, dict, str, str]] = [
    ("dolly", "valid", "valid.jsonl", {"id": "i~", "instruction": "Say ~.", "output": "~"}, "id", "instruction"),
    ("anli", "r1_dev", "r1_dev.jsonl", NLI, "uid", "premise"),
    ("anli", "r2_dev", "plain_text/dev_r2-00000-of-00001.parquet", NLI, "uid", "hypothesis"),
    ("esnli", "test", "esnli_test.csv", CSV_NLI, "pairID", "Sentence1"),
    ("esnli", "valid", "valid.jsonl", NLI, "uid", "hypothesis"),
    (
        "cqa",
        "test",
        "cqa_test.json",
        {"id": "i~", "question": "~?", "choices": ["a", "b"], "answer": "b"},
        "id",
        "question",
    ),
    (
        "cqa",
        "train",
        "data/train-00000-of-00001.parquet",
        {"id": "i~", "question": "Who keeps ~?", "choices": CHOICES, "answerKey": "B"},
        "id",
        "question",
    ),
    ("svamp", "train", "svamp_train.json", {"id": "i~", "input": "~ and ~?", "label": "1 + 1"}, "id", "label"),
    ("svamp", "all", "SVAMP.json", SVAMP, "ID", "Body"),
    ("gsm8k", "test", "test.jsonl", {"id": "i~", "question": "~ and ~?", "answer": "Add.\n#### 4"}, "id", "question"),
    ("cnn_dailymail", "test", "test.csv", ARTICLE, "id", "highlights"),
    ("xsum", "test", "test.parquet", {"id": "i~", "document": "Dog ~ ran.", "summary": "It ran."}, "id", "document"),
    ("samsum", "validation", "val.json", {"id": "i~", "dialogue": "A: hi ~", "summary": "Greet."}, "id", "summary"),
]
READER_NAMES = [f"{name}-{Path(file).name}" for name, _, file, *_ in READERS]
NUM_ROWS, BROKEN = 5, 2
ARRAYS = ("SVAMP.json", "val.json")


def rows_like(row: dict) -> list[dict]:
    return [json.loads(json.dumps(row).replace("~", str(n))) for n in range(NUM_ROWS)]


def written(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".csv":
        file.write_bytes(table([list(rows[0]), *[[str(row.get(key, "")) for key in rows[0]] for row in rows]]))
    elif file.name in ARRAYS:
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def where(file: Path) -> str:
    """The broken row's place: in a csv the header is line 1."""
    return f"{file.name}:{BROKEN + 1 + (file.suffix == '.csv')}"


def test_each_smallest_file_is_whole(tmp_path):
    for name, split, file, row, id, _ in READERS:
        written(tmp_path / name / file, rows_like(row))
        found = load(name, split, folder=tmp_path / name)
        assert ([item.id for item in found.items], found.bad) == ([made[id] for made in rows_like(row)], ())


# How a row is broken, and what its reason says. A csv has neither lists nor half characters, a table no row without
# one of its columns.
ROW_BREAKS: dict[str, tuple[Callable[[dict, str, str], dict], str, tuple[str, ...]]] = {
    "empty": (lambda row, id, field: row | {field: ""}, "empty", ()),
    "blank": (lambda row, id, field: row | {field: " \n"}, "empty", ()),
    "nul": (lambda row, id, field: row | {field: "a\0b"}, "NUL", ()),
    "duplicate id": (lambda row, id, field: row | {id: "i0"}, "duplicate id 'i0' (first at", ()),
    "missing": (lambda row, id, field: {k: v for k, v in row.items() if k != field}, "", (".csv",)),
    "number": (lambda row, id, field: row | {field: 3}, "not text", (".csv", ".parquet")),
    "list": (lambda row, id, field: row | {field: [row[field]]}, "not text", (".csv", ".parquet")),
    "null": (lambda row, id, field: row | {field: None}, "", (".csv",)),
    "half a character": (lambda row, id, field: row | {field: "\ud800"}, "surrogate", (".csv", ".parquet")),
    "3 MB": (lambda row, id, field: row | {field: "x" * 3_000_000}, "over-long", ()),
}


def broken_rows():
    """Each reader with each way to break its row."""
    for reader, name in zip(READERS, READER_NAMES, strict=True):
        for kind, (*breaking, not_for) in ROW_BREAKS.items():
            if Path(reader[2]).suffix not in not_for:
                yield pytest.param(*breaking, *reader, id=f"{name}-{kind}")


@pytest.mark.parametrize(("breaking", "reason", "name", "split", "file", "row", "id", "field"), list(broken_rows()))
def test_a_broken_row_of_a_named_data_set_is_counted_and_the_others_are_read(
    tmp_path, breaking, reason, name, split, file, row, id, field
):
    rows = rows_like(row)
    rows[BROKEN] = breaking(rows[BROKEN], id, field)
    path = written(tmp_path / file, rows)
    found = load(name, split, folder=tmp_path)
    assert [item.id for item in found.items] == ["i0", "i1", "i3", "i4"]
    ((place, said),) = [(bad.where, bad.reason) for bad in found.bad]
    assert place == where(path)
    assert reason in said
    assert "\n" not in said


OF_LINES = [
    one[:4] for one in READERS if Path(one[2]).suffix in (".json", ".jsonl") and Path(one[2]).name not in ARRAYS
]
LINE_BREAKS: dict[str, tuple[bytes, str]] = {
    "not json": (b"{'a': 1}", "not JSON"),
    "cut off": (b'{"id": "i2", "question": "Wh', "not JSON"),
    "a list": (b"[1, 2]", "not a JSON object but a list"),
    "a raw nul": (b'{"id": "i2\0"}', "NUL"),
    "latin-1": (b'{"id": "caf\xe9"}', "not UTF-8"),
    "no object": (b"null", "not a JSON object but null"),
}


@pytest.mark.parametrize("kind", LINE_BREAKS)
@pytest.mark.parametrize(("name", "split", "file", "row"), OF_LINES, ids=[one[0] for one in OF_LINES])
def test_a_broken_line_of_a_named_data_set_is_counted(tmp_path, kind, name, split, file, row):
    path = written(tmp_path / file, rows_like(row))
    lines = path.read_bytes().splitlines()
    lines[BROKEN] = LINE_BREAKS[kind][0]
    path.write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join(lines)
    )  # with a mark and another system's line ends, which are fine
    found = load(name, split, folder=tmp_path)
    assert len(found.items) == NUM_ROWS - 1
    ((place, said),) = [(bad.where, bad.reason) for bad in found.bad]
    assert place == where(path)
    assert LINE_BREAKS[kind][1] in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"i2,too,few", "fields where the header has"),
        (b'i2,"a"b,"c",d,e', "not csv"),
        (b"i2,caf\xe9,a,b,c", "not UTF-8"),
    ],
)
def test_a_broken_line_of_a_named_csv_is_counted(tmp_path, line, said):
    path = written(tmp_path / "esnli_test.csv", rows_like(CSV_NLI))
    lines = path.read_bytes().splitlines()
    lines[BROKEN + 1] = line
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    found = load("esnli", "test", folder=tmp_path)
    assert len(found.items) == NUM_ROWS - 1
    ((place, reason),) = [(bad.where, bad.reason) for bad in found.bad]
    assert place == where(path)
    assert said in reason


# --- whole files of named data sets -----------------------------------------------------------------------------------


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


WHOLE_BREAKS: dict[str, Callable[[Path], object]] = {
    "zero bytes": lambda file: file.write_bytes(b""),
    "a mark alone": lambda file: file.write_bytes(b"\xef\xbb\xbf"),
    "noise": lambda file: file.write_bytes(bytes(range(256)) * 20),
    "utf-16": lambda file: file.write_bytes('{"a": "b"}\n'.encode("utf-16") * 3),
    "another's rows": lambda file: written(file, [{"x": "y"}] * 3),
    "a folder": as_folder,
    "a link to nowhere": lambda file: (file.unlink(), file.symlink_to("gone")),
    "nuls": lambda file: file.write_bytes(b"\0" * 5000),
}


def outcome(name: str, split: str, folder: Path) -> Loaded | DataError:
    try:
        return load(name, split, folder=folder)
    except DataError as error:
        return error


def named_error(name: str, split: str, folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        load(name, split, folder=folder)
    assert "\n" not in caught.value.cause
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("kind", WHOLE_BREAKS)
@pytest.mark.parametrize(("name", "split", "file", "row"), [one[:4] for one in READERS], ids=READER_NAMES)
def test_a_file_of_a_named_data_set_that_is_broken_as_a_whole_is_refused_by_its_name(
    tmp_path, kind, name, split, file, row
):
    path = written(tmp_path / file, rows_like(row))
    WHOLE_BREAKS[kind](path)
    assert (str(tmp_path) if "folder" in kind or "link" in kind else path.name) in named_error(
        name, split, tmp_path
    ).cause


@pytest.mark.parametrize(("name", "split", "file", "row"), [one[:4] for one in READERS], ids=READER_NAMES)
def test_a_file_that_is_cut_anywhere_is_refused_or_read_as_far_as_it_goes(tmp_path, name, split, file, row):
    path = written(tmp_path / file, rows_like(row))
    whole, all_items = path.read_bytes(), load(name, split, folder=tmp_path).items
    for length in range(1, len(whole), 1 + len(whole) // 60):
        path.write_bytes(whole[:length])
        found = outcome(name, split, tmp_path)
        if isinstance(found, DataError):
            assert path.name in found.cause
        else:
            assert path.suffix != ".parquet"
            assert path.name not in ARRAYS
            assert found.items == all_items[: len(found.items)] or path.suffix == ".csv"  # whose last field may be cut
            assert len(found.bad) <= 1


@pytest.mark.parametrize("column", [[b"\xff\xfe"] * 3, [{"a": 1}] * 3, [1.5] * 3, [None] * 3])
def test_a_table_with_a_column_of_another_type_is_refused_by_its_rows(tmp_path, column):
    columns = {"id": ["a", "b", "c"], "document": column, "summary": ["s"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    assert "test.parquet:1: field 'document' is" in named_error("xsum", "test", tmp_path).cause


def test_a_table_with_a_damaged_byte_is_refused_or_read_and_nothing_else(tmp_path):
    path = written(tmp_path / "test.parquet", rows_like(READERS[-2][3]))
    whole, draw = path.read_bytes(), random.Random(0)
    refused_times = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        found = outcome("xsum", "test", tmp_path)
        if isinstance(found, DataError):
            refused_times += 1
            assert "test.parquet" in found.cause
    assert refused_times > 20


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path):
    names = ["prompt", "prompt", "response"]
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=names), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="two columns called 'prompt'"):
        list(read_rows(tmp_path / "x.parquet"))


@pytest.mark.parametrize("suffix", ["", "!"])
def test_a_column_whose_name_is_not_text_is_refused(tmp_path, suffix):
    path = written(tmp_path / "test.parquet", [{f"document{suffix}": "Dog ran.", "summary": "It ran."}])
    path.write_bytes(path.read_bytes().replace(b"document", b"docume\xff\xfe"))
    assert "test.parquet has a column whose name is not UTF-8" in named_error("xsum", "test", tmp_path).cause


@pytest.mark.parametrize(
    "column",
    [
        pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["x", "x"]),
        pa.array([2**61], pa.timestamp("ms")),
    ],
    ids=["two fields of one name", "a date past all calendars"],
)
def test_a_value_that_python_cannot_hold_makes_a_bad_row(tmp_path, column):
    pq.write_table(pa.table({"document": column, "summary": ["s"]}), tmp_path / "test.parquet")
    assert "test.parquet:1: not what Python can hold: " in named_error("xsum", "test", tmp_path).cause


# --- arrays and values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"id": "a"}', "not a whole JSON array"),
        (b'[{"id": "a"}]]', "not a whole JSON array"),
        (b'[{"id": "caf\xe9"}]', "not a whole JSON array"),
        (b'[{"id": "a\0b"}]', "not a whole JSON array"),
        (b"[" * 100_000, "not a whole JSON array"),
        (b"[" + b"9" * 5000 + b"]", "not a whole JSON array"),
        (b"[]", "it has none"),
        (b"[1, null, [2]]", "SVAMP.json:1: not a JSON object but int; SVAMP.json:2: not a JSON object but null"),
    ],
)
def test_a_broken_array_is_refused_by_its_name(tmp_path, content, said):
    (tmp_path / "SVAMP.json").write_bytes(content)
    cause = named_error("svamp", "all", tmp_path).cause
    assert "SVAMP.json" in cause
    assert said in cause


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    | st.sampled_from(["\ud800", "\0", " ", "####", "premise: a\nhypothesis: b", "{instruction}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=5,
)
OF_JSON = [one for one in READERS if Path(one[2]).suffix in (".json", ".jsonl")]


@settings(max_examples=150, deadline=None)
@given(reader=st.sampled_from(OF_JSON), data=st.data())
def test_whatever_stands_in_a_field_the_row_is_an_item_or_a_bad_row(reader, data):
    name, _, file, row, id, _ = reader
    field = data.draw(st.sampled_from([key for key in row if key != id] + ["input", "choices", "label", "answerKey"]))
    changed = rows_like(row)[0] | {field: data.draw(JSON)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(file).name
        path.write_text(json.dumps([changed] if path.name in ARRAYS else changed))
        (found,) = DATASETS[name].read(path)
    if isinstance(found, BadRow):
        assert found.where == f"{path.name}:1"
        assert "\n" not in found.reason
    else:
        assert isinstance(found, Item)
        repr(found).encode()


def test_a_number_too_large_for_a_float_is_a_bad_row_or_an_answer(tmp_path):
    rows = rows_like(SVAMP)
    (tmp_path / "SVAMP.json").write_text(json.dumps([*rows[:2], rows[2] | {"Answer": 10**400}]))
    assert load("svamp", "all", folder=tmp_path).items[2].references[1] == "1" + 400 * "0"


@pytest.mark.parametrize(("id", "said"), [("\ud800", "half a character"), ("a\0", "NUL")])
def test_an_id_that_no_seed_can_be_made_of_is_a_bad_row(tmp_path, id, said):
    row = {"id": id, "prompt": "p", "response": "1", "question": "p", "answer": "#### 1"}
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(row | {"id": "a"}) + "\n" + json.dumps(row))
    (bad,) = load("gsm8k", "test", folder=tmp_path).bad
    assert bad.where == "test.jsonl:2"
    assert bad.reason.startswith("field 'id'")
    assert said in bad.reason
    with pytest.raises(DataError, match=f"test.jsonl:2: field 'id' .*{said}"):
        items_of(SUITES["maths"], file=file)


# --- what may not be read ---------------------------------------------------------------------------------------------


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder whose files the one who asks may be kept from; the superuser asks as somebody else meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        superuser = os.geteuid() == 0
        try:
            yield Path(name)
        finally:
            if superuser:
                os.seteuid(0)


def drop() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


MAY_NOT = [one[:4] for one in READERS]


@pytest.mark.parametrize(("name", "split", "file", "row"), MAY_NOT, ids=READER_NAMES)
def test_a_file_without_permission_is_refused_by_its_name(name, split, file, row):
    with unprivileged() as folder:
        path = written(folder / file, rows_like(row))
        path.chmod(0)
        drop()
        assert path.name in named_error(name, split, folder).cause


def test_a_folder_without_permission_is_refused_by_its_name():
    with unprivileged() as folder:
        path = written(folder / "closed" / "valid.jsonl", rows_like(READERS[0][3]))
        path.parent.chmod(0)
        drop()
        assert str(path.parent) in named_error("dolly", "valid", path.parent).cause


# --- files of one's own for suites ------------------------------------------------------------------------------------

OWN = {
    "instruction": {"id": "i~", "prompt": "Say ~.", "response": "~"},
    "classification": {"id": "i~", "prompt": "Which, ~?", "options": ["a", "b"], "response": "b"},
    "maths": {"id": "i~", "prompt": "~ and 1?", "response": "3"},
    "summaries": {"id": "i~", "prompt": "Dog ~ ran.", "response": "It ran."},
}


def own_error(suite: str, file: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        items_of(SUITES[suite], file=file)
    assert "\n" not in caught.value.cause
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("field", ["prompt", "response"])
@pytest.mark.parametrize("breaks", [kind for kind in ROW_BREAKS if kind != "duplicate id"])
@pytest.mark.parametrize("suite", OWN)
def test_a_broken_row_of_ones_own_is_refused_where_it_stands(tmp_path, suite, breaks, field, kind):
    breaking, reason, not_for = ROW_BREAKS[breaks]
    rows = [
        row for row in rows_like(OWN[suite]) if f".{kind}" not in not_for and (suite, kind) != ("classification", "csv")
    ]
    if not rows or (breaks, field) == ("list", "response"):  # which is a list of acceptable ones
        return
    rows[BROKEN] = breaking(rows[BROKEN], "id", field)
    file = written(tmp_path / f"own.{kind}", rows)
    cause = own_error(suite, file).cause
    assert cause.startswith(f"{where(file)}: ")
    assert reason in cause


@pytest.mark.parametrize("suite", OWN)
@pytest.mark.parametrize("kind", LINE_BREAKS)
def test_a_broken_line_of_ones_own_is_refused_where_it_stands(tmp_path, suite, kind):
    file = written(tmp_path / "own.jsonl", rows_like(OWN[suite]))
    lines = file.read_bytes().splitlines()
    lines[BROKEN] = LINE_BREAKS[kind][0]
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    cause = own_error(suite, file).cause
    assert cause.startswith("own.jsonl:3: ")
    assert LINE_BREAKS[kind][1] in cause


@pytest.mark.parametrize("options", [[], "a", ["a", 3], ["a", ""], {"a": "b"}, None, ["c", "d"], [["b"]], 7])
def test_options_that_are_none_are_refused_where_they_stand(tmp_path, options):
    if options == "a":
        options = "not b"
    rows = rows_like(OWN["classification"])
    rows[BROKEN]["options"] = options
    file = written(tmp_path / "own.jsonl", rows)
    assert own_error("classification", file).cause.startswith("own.jsonl:3: field")


NO_ROWS = ("a mark alone", "another's rows", "nuls")  # in a text they are a line, or none


@pytest.mark.parametrize("suite", ["instruction", "plain_text"])
@pytest.mark.parametrize("kind", [kind for kind in WHOLE_BREAKS if kind not in NO_ROWS])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "txt"])
def test_a_whole_file_of_ones_own_that_is_broken_is_refused_by_its_name(tmp_path, suite, kind, suffix):
    file = written(tmp_path / "own.jsonl", rows_like({"text": "A dog.", **OWN["instruction"]}))
    file = file.rename(tmp_path / f"own.{suffix}")
    WHOLE_BREAKS[kind](file)
    assert f"own.{suffix}" in own_error(suite, file).cause


@pytest.mark.parametrize("suite", [*OWN, "plain_text"])
@pytest.mark.parametrize("content", [b"\n\n", b"\xef\xbb\xbf", b" "])
def test_a_file_of_ones_own_without_rows_is_refused(tmp_path, suite, content):
    file = tmp_path / "own.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"own\.jsonl"):
        evaluate_models([], [SUITES[suite]], root=tmp_path / "out", file=file)


@pytest.mark.parametrize(
    ("suite", "row"),
    [
        ("maths", {"response": "many"}),
        ("classification", {"options": ["b"]}),
        ("classification", {"options": []}),
        ("maths", {"id": "i0"}),
    ],
    ids=["an answer without a value", "one option", "no option", "an id twice"],
)
def test_a_row_that_the_suite_cannot_ask_is_refused_where_it_stands_before_a_model_is_loaded(tmp_path, suite, row):
    rows = rows_like(OWN[suite])
    rows[BROKEN] |= row
    file = written(tmp_path / "own.jsonl", rows)
    with pytest.raises(DataError, match=r"own\.jsonl:3"):
        evaluate_models([], [SUITES[suite]], root=tmp_path / "out", file=file)
