"""Data sets by name: each layout, each kind of broken row, files that are not there; and the real files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.data.catalogue import DATASETS, Loaded, card, card_text, data_root, load
from potstill.data.catalogue.choices import cqa_item
from potstill.data.catalogue.item import Item
from potstill.data.catalogue.loading import files_of
from potstill.data.catalogue.maths import svamp_item
from potstill.data.examples import Unusable
from potstill.data.formats import example_of
from potstill.data.reader import Row, read_rows
from potstill.errors import DataError
from potstill.evaluation.metrics import arithmetic
from potstill.recipe import Data

BIRD = {"instruction": "Name a bird.", "input": "", "output": "A heron."}
WHY = {"uid": "a1", "premise": "A dog runs.", "hypothesis": "A cat sleeps.", "label": "neutral", "reason": "Not said."}
PENS = {"question": "Who keeps pens?", "choices": ["clerk", "fish", "moon"], "answer": "fish"}
SUM = {"ID": "s-1", "Body": "Ann has 3 pens.", "Question": "How many are 4 more?", "Equation": "( 3.0 + 4.0 )"}


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def table(*rows: dict[str, str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def put(folder: Path, name: str, content: str | list[dict[str, Any]]) -> Path:
    """Text as it is; rows as parquet."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        file.write_text(content, encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(content), file)
    return file


def loaded(folder: Path, name: str, split: str, file: str, content: str | list[dict[str, Any]]) -> Loaded:
    put(folder, file, content)
    return load(name, split, folder=folder)


def only(found: Loaded) -> Any:
    (item,) = found.items
    assert found.bad == ()
    return item


def reasons(found: Loaded) -> list[tuple[str, str]]:
    return [(row.where, row.reason) for row in found.bad]


# --- instructions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dolly", "self_inst", "vicuna", "sinst", "uinst"])
def test_instructions_have_alpacas_frame_and_every_answer(tmp_path: Path, name: str) -> None:
    row = {"instruction": "Translate.", "input": "chat", "output": ["cat", "a cat"], "topic": "french"}
    item = only(loaded(tmp_path, name, "valid", "valid.jsonl", lines(row)))
    assert item.prompt.endswith("### Instruction:\nTranslate.\n\n### Input:\nchat\n\n### Response:\n")
    assert item.references == ("cat", "a cat")
    assert (item.group, item.id, item.options, item.answer) == ("french", "valid.jsonl:1", (), None)


@pytest.mark.parametrize("row", [BIRD, BIRD | {"input": "With {braces} and ### Response:"}, {**BIRD, "input": None}])
def test_an_instruction_is_the_row_that_training_sees_and_its_own_words_stand_in_the_prompt(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    file = put(tmp_path, "valid.jsonl", lines(row))
    (raw,) = read_rows(file)
    assert isinstance(raw, Row)
    item = only(load("dolly", "valid", folder=tmp_path))
    example = example_of(raw, Data(format="dolly"))
    assert (item.prompt, item.references) == (example.prompt, (example.response,))
    assert item.prompt.count(item.content) == 1  # a long input is shortened in place
    assert item.content.startswith("Name a bird.")
    assert item.content.endswith(row["input"] or "Name a bird.")
    assert "Below is" not in item.content


def test_vicunas_category_is_the_group(tmp_path: Path) -> None:
    assert (
        only(loaded(tmp_path, "vicuna", "valid", "valid.jsonl", lines(BIRD | {"category": "fermi"}))).group == "fermi"
    )


def test_the_length_bucket_of_minillm_is_found(tmp_path: Path) -> None:
    assert loaded(tmp_path, "uinst", "valid", "11_/valid.jsonl", lines(BIRD)).file == tmp_path / "11_" / "valid.jsonl"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"instruction": "Name', "not JSON"),
        ({"instruction": "Name a bird."}, "missing field 'output'"),
        (BIRD | {"output": " "}, "field 'output' is empty"),
        (BIRD | {"output": []}, "field 'output' is an empty list"),
        (BIRD | {"output": ["a", " "]}, "field 'output[1]' is empty"),
        (BIRD | {"output": ["a", None]}, "field 'output[1]' is null, not text"),
        (BIRD | {"instruction": 3}, "field 'instruction' is int, not text"),
        (BIRD | {"id": "same"}, "duplicate id 'same' (first at valid.jsonl:1)"),
    ],
)
def test_a_broken_instruction_is_counted_and_named(tmp_path: Path, row: Any, reason: str) -> None:
    found = loaded(tmp_path, "dolly", "valid", "valid.jsonl", lines(BIRD | {"id": "same"}, row, BIRD))
    assert [item.id for item in found.items] == ["same", "valid.jsonl:3"]
    ((where, said),) = reasons(found)
    assert where == "valid.jsonl:2"
    assert said.startswith(reason)
    assert found.counts == {"rows": 3, "items": 2, "bad": 1, "with_reference": 2, "with_rationale": 0}


# --- inference --------------------------------------------------------------------------------------------------------

NLI_LAYOUTS: list[tuple[str, str, str, Any]] = [
    ("anli", "r1_dev", "r1_dev.jsonl", lines(WHY)),
    ("anli", "r1_dev", "R1/dev.jsonl", lines({"uid": "a1", "context": "A dog runs."} | WHY | {"label": "n"})),
    ("anli", "r1_dev", "plain_text/dev_r1-00000-of-00001.parquet", [WHY | {"label": 1}]),
    ("anli", "r1_dev", "dev_r1-00000-of-00001.parquet", [WHY | {"label": 1}]),
    ("esnli", "test", "test.jsonl", lines({**WHY, "explanation_1": "Not said.", "reason": None, "label": 1})),
    (
        "esnli",
        "test",
        "esnli_test.csv",
        table(
            {
                "pairID": "a1",
                "gold_label": "neutral",
                "Sentence1": "A dog runs.",
                "Sentence2": "A cat sleeps.",
                "Explanation_1": "Not said.",
                "Explanation_2": "Other.",
            }
        ),
    ),
    (
        "esnli",
        "test",
        "test.jsonl",
        lines(
            {
                "id": "a1",
                "input": "premise: A dog runs.\nhypothesis: A cat sleeps.",
                "label": "neutral",
                "llm_label": "entailment",
                "rationale": "An LLM's.",
                "human_rationale": "Not said.",
            }
        ),
    ),
]


@pytest.mark.parametrize(("name", "split", "file", "content"), NLI_LAYOUTS)
def test_every_layout_of_inference_is_the_same_item(
    tmp_path: Path, name: str, split: str, file: str, content: Any
) -> None:
    item = only(loaded(tmp_path, name, split, file, content))
    assert item.prompt == (
        "A dog runs.\nCan we infer the following and why?\nA cat sleeps."
        "\n\nOPTIONS:\n- entailment\n- contradiction\n- neutral"
    )
    assert (item.references, item.answer) == (("neutral",), 1)
    assert item.options == ("entailment", "neutral", "contradiction")
    assert (item.id, item.rationale, item.group) == ("a1", "Not said.", "r1" if name == "anli" else "")
    assert item.content in item.prompt


def test_anlis_own_context_is_the_premise(tmp_path: Path) -> None:
    row = {"uid": "a1", "context": "It rains.", "hypothesis": "It is wet.", "label": "e", "reason": ""}
    item = only(loaded(tmp_path, "anli", "r2_train", "R2/train.jsonl", lines(row)))
    assert item.prompt.startswith("It rains.\n")
    assert (item.references, item.group, item.rationale) == (("entailment",), "r2", None)


@pytest.mark.parametrize(
    ("label", "word"),
    [(0, "entailment"), (1, "neutral"), (2, "contradiction"), ("2", "contradiction"), ("c", "contradiction")],
)
def test_the_hubs_numbers_and_the_letters_are_words(tmp_path: Path, label: Any, word: str) -> None:
    item = only(loaded(tmp_path, "anli", "r1_dev", "r1_dev.jsonl", lines(WHY | {"label": label})))
    assert item.references == (word,)
    assert item.options[item.answer] == word


@pytest.mark.parametrize("label", ["-", "maybe", -1, 3, True, None, 1.0, ["neutral"]])
def test_a_label_that_is_none_is_refused(tmp_path: Path, label: Any) -> None:
    bad = WHY | {"uid": "a2", "label": label}
    found = loaded(tmp_path, "anli", "r1_dev", "r1_dev.jsonl", lines(WHY, bad))
    assert [where for where, _ in reasons(found)] == ["r1_dev.jsonl:2"]
    assert "'label'" in found.bad[0].reason


def test_a_joined_input_without_its_two_parts_is_refused(tmp_path: Path) -> None:
    bad = {"input": "premise: A dog runs.", "label": "neutral"}
    found = loaded(
        tmp_path, "esnli", "valid", "valid.jsonl", lines(WHY, bad, bad | {"input": "premise: \nhypothesis: x"})
    )
    assert reasons(found) == [
        ("valid.jsonl:2", "field 'input' is not 'premise: ...' and 'hypothesis: ...' on two lines"),
        ("valid.jsonl:3", "field 'premise' is empty"),
    ]


# --- choices ----------------------------------------------------------------------------------------------------------

OWN = {"id": "q", "answerKey": "B", "question": {"stem": "Who keeps pens?"}}
CHOICES = [("A", "clerk"), ("B", "fish"), ("C", "moon")]
CQA_LAYOUTS: list[tuple[str, Any]] = [
    ("cqa_train.json", lines(PENS | {"id": "q"})),
    (
        "train_rand_split.jsonl",
        lines(OWN | {"question": OWN["question"] | {"choices": [{"label": a, "text": b} for a, b in CHOICES]}}),  # type: ignore[operator]
    ),
    (
        "data/train-00000-of-00001.parquet",
        [{"id": "q", "question": PENS["question"], "answerKey": "B"}
         | {"choices": {"label": [a for a, _ in CHOICES], "text": [b for _, b in CHOICES]}}],
    ),
    ("v1.11/train-00000-of-00001.parquet", [PENS | {"id": "q"}]),
]  # fmt: skip


@pytest.mark.parametrize(("file", "content"), CQA_LAYOUTS)
def test_every_layout_of_commonsense_questions_is_the_same_item(tmp_path: Path, file: str, content: Any) -> None:
    item = only(loaded(tmp_path, "cqa", "train", file, content))
    assert item.prompt == "Who keeps pens?\nAnswer Choices:\n(a) clerk\n(b) fish\n(c) moon"
    assert (item.id, item.options, item.answer, item.references) == ("q", ("clerk", "fish", "moon"), 1, ("fish",))


def test_an_item_is_trained_on_with_its_first_reference() -> None:
    assert Item("1", "Say it.", ("one", "two")).example().response == "one"


@pytest.mark.parametrize("name", list(DATASETS))
def test_no_file_is_of_two_splits(name: str) -> None:
    """Else one would be measured on what another was trained on."""
    names = [file for files in DATASETS[name].splits.values() for file in files]
    assert len(set(names)) == len(names)


def test_an_answer_key_without_letters_beside_the_choices_counts_from_a() -> None:
    row = {"question": "Who keeps pens?", "choices": ["clerk", "fish", "moon"], "answerKey": "B"}
    assert cqa_item(Row("f:1", row)).references == ("fish",)


def test_answers_that_are_kept_back_are_no_bad_rows(tmp_path: Path) -> None:
    row = {"id": "q", "question": {"stem": "Who?", "choices": [{"label": a, "text": b} for a, b in CHOICES]}}
    found = loaded(tmp_path, "cqa", "hidden", "test_rand_split_no_answers.jsonl", lines(row))
    item = only(found)
    assert (item.references, item.answer) == ((), None)
    assert found.counts["with_reference"] == 0
    with pytest.raises(ValueError, match="q has no reference"):
        item.example()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "sun"}, "field 'answer' is 'sun', which is none of the choices"),
        ({"answer": ""}, "field 'answer' is empty"),
        ({"answerKey": "Z"}, "field 'answerKey' is 'Z', which is none of the choices"),
        ({"choices": ["one"]}, "field 'choices' has 1 options"),
        ({"choices": ["a"] * 11}, "field 'choices' has 11 options"),
        ({"choices": ["clerk", 3]}, "field 'choices[1]' is int, not text"),
        ({"choices": "clerk, fish"}, "field 'choices' is text, not a list"),
        ({"choices": {"label": ["A"]}}, "field 'text' is null, not a list"),
        ({"choices": {"label": ["A"], "text": ["a", "b"]}}, "field 'choices' has 2 options and 1 letters"),
        ({"question": ""}, "field 'question' is empty"),
        ({"question": {"choices": []}}, "missing field 'stem'"),
    ],
)
def test_a_broken_question_is_counted_and_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    found = loaded(tmp_path, "cqa", "train", "cqa_train.json", lines(PENS, PENS | change))
    assert len(found.items) == 1
    ((where, said),) = reasons(found)
    assert where == "cqa_train.json:2"
    assert said.startswith(reason)


# --- maths ------------------------------------------------------------------------------------------------------------


def test_svamp_in_its_own_layout_and_in_lines(tmp_path: Path) -> None:
    own = only(loaded(tmp_path, "svamp", "all", "SVAMP.json", json.dumps([SUM | {"Answer": 7.0, "Type": "Addition"}])))
    line = only(
        loaded(tmp_path, "svamp", "train", "svamp_train.json", lines({"input": own.prompt, "label": SUM["Equation"]}))
    )
    assert own.prompt == line.prompt == "Ann has 3 pens.\nHow many are 4 more?"
    assert (own.id, own.group, own.references) == ("s-1", "Addition", ("( 3.0 + 4.0 )", "7"))
    assert (line.id, line.group, line.references) == ("svamp_train.json:1", "", ("( 3.0 + 4.0 )",))


@pytest.mark.parametrize(
    ("value", "written"), [(7.0, "7"), (-2, "-2"), (0.5, "0.5"), (1e6, "1000000"), (" 3.5 ", "3.5")]
)
def test_svamps_answer_is_written_as_people_do(value: Any, written: str) -> None:
    assert svamp_item(Row("f:1", SUM | {"Answer": value})).references[1] == written


@pytest.mark.parametrize("value", [None, True, "seven", float("nan"), float("inf"), [7]])
def test_svamps_answer_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(Unusable, match="'Answer'"):
        svamp_item(Row("f:1", SUM | {"Answer": value}))


def test_svamp_that_is_not_an_array_of_objects(tmp_path: Path) -> None:
    found = loaded(tmp_path, "svamp", "all", "SVAMP.json", json.dumps([SUM | {"Answer": 7}, 3, {"Body": "x"}]))
    assert [where for where, _ in reasons(found)] == ["SVAMP.json:2", "SVAMP.json:3"]
    assert found.bad[0].reason == "not a JSON object but int"
    put(tmp_path, "SVAMP.json", '[{"Body": "x"},')
    with pytest.raises(DataError, match=r"SVAMP\.json is not a whole JSON array"):
        load("svamp", "all", folder=tmp_path)


def test_gsm8k_keeps_the_working_without_its_calculator(tmp_path: Path) -> None:
    row = {"question": "How much?", "answer": "Half of 4,000 is 4000/2=<<4000/2=2000>>2000.\nSo 2000.\n#### 2,000"}
    item = only(loaded(tmp_path, "gsm8k", "test", "test.jsonl", lines(row)))
    assert (item.prompt, item.references) == ("How much?", ("2000",))
    assert item.rationale == "Half of 4,000 is 4000/2=2000.\nSo 2000."


@pytest.mark.parametrize("answer", ["2000", "work\n#### ", "work\n#### two", "#### 3 apples"])
def test_gsm8k_without_a_number_at_its_end_is_refused(tmp_path: Path, answer: str) -> None:
    good = {"question": "How much?", "answer": "#### -1.5"}
    found = loaded(tmp_path, "gsm8k", "test", "test.jsonl", lines(good, {"question": "How?", "answer": answer}))
    assert only(Loaded(found.items, (), found.files, {})).references == ("-1.5",)
    assert reasons(found) == [("test.jsonl:2", "field 'answer' does not end in a number after ####")]


# --- summaries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "long", "short"),
    [("cnn_dailymail", "article", "highlights"), ("xsum", "document", "summary"), ("samsum", "dialogue", "summary")],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_summaries_in_every_kind_of_file(tmp_path: Path, name: str, long: str, short: str, kind: str) -> None:
    row = {"id": "x1", long: 'She said: "It rains."\nThen, sun.', short: "Rain .\nSun ."}
    content = {"csv": table(row), "jsonl": lines(row), "json": json.dumps([row]), "parquet": [row]}[kind]
    item = only(loaded(tmp_path, name, "test", f"test.{kind}", content))
    assert item.prompt == f"summarize: {row[long]}\n"
    assert (item.id, item.content, item.references) == ("x1", row[long], ("Rain .\nSun .",))


def test_a_summary_of_nothing_is_refused(tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "article": a, "highlights": h} for n, (a, h) in enumerate([("a", "h"), ("", "h"), ("a", " ")])
    ]
    found = loaded(tmp_path, "cnn_dailymail", "test", "test.csv", table(*rows))
    assert reasons(found) == [("test.csv:3", "field 'article' is empty"), ("test.csv:4", "field 'highlights' is empty")]


def test_samsums_validation_file_has_its_own_name(tmp_path: Path) -> None:
    row = {"id": "1", "dialogue": "A: hi", "summary": "A greets."}
    assert loaded(tmp_path, "samsum", "validation", "val.json", json.dumps([row])).file.name == "val.json"


# --- files ------------------------------------------------------------------------------------------------------------


def esnli_part(id: str) -> str:
    return table({"pairID": id, "gold_label": "neutral", "Sentence1": "A.", "Sentence2": "B.", "Explanation_1": ""})


def test_parts_are_read_as_one_and_a_missing_part_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "esnli_train_1.csv", esnli_part("1"))
    with pytest.raises(DataError, match=r"has esnli_train_1\.csv but not esnli_train_2\.csv"):
        load("esnli", "train", folder=tmp_path)
    put(tmp_path, "esnli_train_2.csv", esnli_part("2"))
    found = load("esnli", "train", folder=tmp_path)
    assert [item.id for item in found.items] == ["1", "2"]
    assert sorted(found.sha256) == ["esnli_train_1.csv", "esnli_train_2.csv"]


def test_an_id_that_two_parts_share_is_bad_once(tmp_path: Path) -> None:
    put(tmp_path, "esnli_train_1.csv", esnli_part("1"))
    found = loaded(tmp_path, "esnli", "train", "esnli_train_2.csv", esnli_part("1"))
    assert (len(found.items), reasons(found)[0][0]) == (1, "esnli_train_2.csv")


@pytest.mark.parametrize(
    ("there", "said"), [(["00000"], "has 1 of the 2 parts"), (["00000", "00001", "00003"], "3 of")]
)
def test_a_shard_too_few_or_too_many_is_refused(tmp_path: Path, there: list[str], said: str) -> None:
    for part in there:
        put(tmp_path, f"main/test-{part}-of-00002.parquet", [{"question": "q", "answer": "#### 1"}])
    with pytest.raises(DataError, match=said):
        load("gsm8k", "test", folder=tmp_path)


def test_a_file_that_is_absent_is_named_with_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load("gsm8k", "test")
    assert caught.value.cause == f"no file of gsm8k, split test, in {tmp_path / 'gsm8k'}, which is not there"
    assert caught.value.fix is not None
    for part in ("https://github.com/openai/grade-school-math", "test.jsonl", "main/test-*.parquet", "POTSTILL_DATA"):
        assert part in caught.value.fix


def test_the_data_root_is_the_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    assert data_root() == tmp_path
    put(tmp_path, "dss_raw/svamp/svamp_test.json", lines({"input": "q", "label": "1"}))
    put(tmp_path, "vicuna/valid.jsonl", lines(BIRD))
    assert len(load("svamp", "test").items) == len(load("vicuna", "valid").items) == 1
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path / "absent"))
    with pytest.raises(DataError, match="there is no folder of data sets") as caught:
        data_root()
    assert "POTSTILL_DATA" in str(caught.value.fix)


def test_without_the_variable_the_data_is_beside_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    if beside.is_dir():
        assert data_root() == beside
    else:
        with pytest.raises(DataError, match="shared"):
            data_root()


def test_a_wrong_name_or_split_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set called 'doly'") as caught:
        load("doly", "valid", folder=tmp_path)
    assert str(caught.value.fix).startswith("Did you mean 'dolly'? It is one of dolly, self_inst")
    with pytest.raises(DataError, match="anli has no split 'dev'") as caught:
        load("anli", "dev", folder=tmp_path)
    assert str(caught.value.fix).startswith("Did you mean 'r1_dev'? It has r1_train")


def test_a_file_without_one_item_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "valid.jsonl", lines({"text": "prose"}))
    with pytest.raises(DataError, match=r"no row of .*valid\.jsonl can be used: valid\.jsonl:1: missing field"):
        load("dolly", "valid", folder=tmp_path)


# --- cards ------------------------------------------------------------------------------------------------------------


def test_the_card_says_what_was_read(tmp_path: Path) -> None:
    found = loaded(tmp_path, "anli", "r3_dev", "r3_dev.jsonl", lines(WHY, "{"))
    made = card("anli", "r3_dev", found)
    assert made["counts"] == {"rows": 2, "items": 1, "bad": 1, "with_reference": 1, "with_rationale": 1}
    assert (made["licence"], made["published_rows"], made["groups"]) == ("CC BY-NC 4.0", 1200, {"r3": 1})
    assert made["fields"] == ["id", "prompt", "references", "options", "answer", "group", "rationale", "content"]
    text = card_text(json.loads(json.dumps(made)))
    assert "1 items, 1 rows that cannot be used; published with 1,200 rows, so this is not the whole split" in text
    assert f"file: r3_dev.jsonl sha256 {made['sha256']['r3_dev.jsonl']}" in text
    assert "bad row: r3_dev.jsonl:2: not JSON" in text


def test_the_hash_is_of_the_files_bytes(tmp_path: Path) -> None:
    put(tmp_path, "valid.jsonl", lines(BIRD).rstrip("\n"))
    (digest,) = load("dolly", "valid", folder=tmp_path).sha256.values()
    assert digest == hashlib.sha256(json.dumps(BIRD).encode()).hexdigest()


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_says_where_it_is_from(name: str) -> None:
    about = DATASETS[name].card
    assert about.name == name
    assert about.source.startswith("https://")
    assert about.licence
    assert about.task.endswith(".")
    assert set(about.published) <= set(DATASETS[name].splits)


@pytest.mark.parametrize("name", DATASETS)
def test_the_reference_page_has_every_data_set(name: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "data-sets.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    listed = DATASETS[name].splits
    assert all(f"`{split}`" in row for split in listed if split[:1] != "r" or split in ("raw", "r1_train", "r3_test"))
    assert any(all(f"`{file}`" in page for file in files) for files in listed.values())
    for count in DATASETS[name].card.published.values() if name != "anli" else ():
        assert f"{count:,}" in row or count == 1000


# --- the real files ---------------------------------------------------------------------------------------------------

# Rows by split, of copies of which some are not whole: README of the folder they come from.
REAL = {
    "dolly": {"dev": 1000, "valid": 500},
    "self_inst": {"valid": 242},
    "vicuna": {"valid": 80},
    "sinst": {"valid": 1694},
    "anli": {"r1_dev": 1000, "r2_dev": 1000, "r3_dev": 1198, "r1_test": 1000},
    "esnli": {"valid": 9842, "test": 9824},
    "cqa": {"train": 9741, "test": 1221},
    "svamp": {"train": 800, "test": 200, "all": 1000},
    "cnn_dailymail": {"train": 800, "validation": 100, "test": 100},
}


@pytest.fixture
def real(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POTSTILL_DATA", str(data_dir))
    return data_dir


@pytest.mark.parametrize(("name", "split"), [(name, split) for name in REAL for split in REAL[name]])
def test_a_real_split_is_read_without_a_bad_row(real: Path, name: str, split: str) -> None:
    found = load(name, split)
    assert found.bad == ()
    assert len(found.items) == REAL[name][split]
    assert all(item.references and item.prompt.strip() for item in found.items)
    assert all(item.content is None or item.content in item.prompt for item in found.items)
    assert all(item.answer is None or item.options[item.answer] == item.references[0] for item in found.items)
    for file in found.files:
        manifest = next(folder / "MANIFEST.json" for folder in file.parents if (folder / "MANIFEST.json").is_file())
        listed = {entry["file"]: entry for entry in json.loads(manifest.read_text(encoding="utf-8"))["files"]}
        assert found.sha256[file.name] == listed[str(file.relative_to(manifest.parent))]["sha256"]


def test_no_real_file_of_a_data_set_is_left_unread(real: Path) -> None:
    read = {file for name in REAL for split in REAL[name] for file in files_of(DATASETS[name], split)}
    folders = {real / place for name in REAL for place in DATASETS[name].places if (real / place).is_dir()}
    there = {file for folder in folders for file in folder.iterdir() if file.is_file()}
    assert {file.name for file in there - read} <= {"MANIFEST.json"}


def test_minillms_own_prompts_are_ours(real: Path) -> None:
    for name, split in (("dolly", "dev"), ("self_inst", "valid"), ("vicuna", "valid"), ("sinst", "valid")):
        found = load(name, split)
        rows = [row.values["prompt"] for row in read_rows(found.file) if isinstance(row, Row)]
        assert [item.prompt for item in found.items] == rows


def test_svamps_cut_is_of_svamp(real: Path) -> None:
    parts = [item for split in ("train", "test") for item in load("svamp", split).items]
    equations = {item.prompt: item.references[0] for item in load("svamp", "all").items}
    assert {item.prompt for item in parts} == set(equations)
    assert all(item.references[0] == equations[item.prompt] for item in parts)


def test_one_published_answer_of_svamp_is_not_its_equations(real: Path) -> None:
    values = {i.id: [arithmetic.evaluate(text).value for text in i.references] for i in load("svamp", "all").items}
    differing = [id for id, pair in values.items() if not arithmetic.same_value(*pair)]
    assert differing == ["chal-680"]
