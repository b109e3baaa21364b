"""Long inputs lose their middle, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.catalogue import Item, load
from potstill.data.examples import Example
from potstill.data.formats import example_of, without_frame
from potstill.data.prepare import prepare
from potstill.data.reader import Row
from potstill.data.shorten import GAP, fitted, shortened
from potstill.data.tokenise import num_prompt_tokens
from potstill.errors import DataError
from potstill.recipe import Data
from tests.unit.data.conftest import good_rows, make_tokenizer
from tests.unit.data.test_prepare import balanced

ARTICLE = " ".join(f"word{number}" for number in range(120))
ASKED = "Say in one line what this is about, and keep to what it says."


def dolly(instruction: str = ASKED, context: str = ARTICLE) -> Example:
    row = Row("rows.jsonl:1", {"instruction": instruction, "input": context, "output": "Words."})
    return example_of(row, Data(format="dolly"))


def test_the_input_loses_its_middle_and_the_frame_and_the_instruction_stay(tokenizer: Any) -> None:
    example = dolly()
    short, left_out = shortened(example, tokenizer, "none", 400)
    before, after = example.prompt.split(ARTICLE)
    assert short.prompt.startswith(before + "word0 word1 ")
    assert short.prompt.endswith(" word119" + after)
    assert short.prompt.count(GAP) == 1
    assert (short.response, short.id) == (example.response, example.id)
    assert num_prompt_tokens(short, tokenizer, "none") <= 400
    start, end = short.input_span or (0, 0)
    assert short.own_words == f"{ASKED}\n{short.prompt[start:end]}"
    first, last = short.prompt[start:end].split(GAP)
    kept = sum(len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (first, f" {last}"))
    assert abs(left_out + kept - len(tokenizer(ARTICLE, add_special_tokens=False)["input_ids"])) <= 2


def test_an_instruction_that_quotes_its_input_keeps_the_quotation(tokenizer: Any) -> None:
    example = dolly(instruction=f"Is this a poem: {ARTICLE}")
    limit = num_prompt_tokens(example, tokenizer, "none") - 40
    short, left_out = shortened(example, tokenizer, "none", limit)
    assert left_out >= 40
    assert f"### Instruction:\nIs this a poem: {ARTICLE}\n\n### Input:\nword0" in short.prompt
    assert short.own_words.startswith(f"Is this a poem: {ARTICLE}\nword0")
    assert GAP in short.own_words


@pytest.mark.parametrize("limit", [10, 60, 200])
def test_an_instruction_is_never_cut(tokenizer: Any, limit: int) -> None:
    """Without an input, or where the frame and the instruction alone are too long."""
    for example in (dolly(instruction=ARTICLE, context=""), dolly(instruction=ARTICLE, context="A short input.")):
        assert shortened(example, tokenizer, "none", limit) == (example, 0)


def test_an_input_is_not_left_out_whole(tokenizer: Any) -> None:
    example = dolly()
    frame = num_prompt_tokens(dolly(context=GAP), tokenizer, "none")
    limits = range(frame - 3, frame + 30)
    results = [shortened(example, tokenizer, "none", limit) for limit in limits]
    assert results[0] == (example, 0)
    cut = [
        short.prompt.partition("### Input:\n")[2].removesuffix("\n\n### Response:\n") for short, lost in results if lost
    ]
    assert cut
    assert all(text.replace("[...]", "").strip() for text in cut)


def test_a_bare_prompt_keeps_both_its_ends_and_a_chat_all_of_it(tokenizer: Any, chat_tokenizer: Any) -> None:
    bare = Example(f"Sum up. {ARTICLE} Now sum up.", "r", "1")
    for template, mine in (("none", tokenizer), ("chat", chat_tokenizer)):
        short, left_out = shortened(bare, mine, template, 100)  # type: ignore[arg-type]
        assert left_out > 100
        assert short.prompt.startswith("Sum up. word0 ")
        assert short.prompt.endswith(" Now sum up.")
        assert num_prompt_tokens(short, mine, template) <= 100  # type: ignore[arg-type]
    messages = [{"role": "user", "content": ARTICLE}, {"role": "assistant", "content": "r"}]
    chat = example_of(Row("c:1", {"messages": messages}), Data(format="chat"))
    assert shortened(chat, chat_tokenizer, "chat", 50) == (chat, 0)


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=400)


@settings(max_examples=80, deadline=None)
@given(context=WORDS, instruction=WORDS.filter(str.strip), limit=st.integers(60, 500))
def test_whatever_the_text_the_frame_stays_and_what_is_cut_fits(context: str, instruction: str, limit: int) -> None:
    tokenizer = TOKENIZER
    example = dolly(instruction, context)
    short, left_out = shortened(example, tokenizer, "none", limit)
    start, end = example.input_span or (0, 0)
    assert example.prompt[start:end] == context
    if left_out == 0:
        assert short == example
        return
    assert num_prompt_tokens(short, tokenizer, "none") <= limit
    assert short.prompt.startswith(example.prompt[:start])
    assert short.prompt.endswith(example.prompt[end:])
    first, last = short.prompt[start : len(short.prompt) - len(example.prompt[end:])].split(GAP)
    assert context.startswith(first)
    assert context.endswith(last)


TOKENIZER = make_tokenizer("<s> $A")


def test_a_tokenizer_without_offsets_is_refused_by_name(tokenizer: Any) -> None:
    class Slow:
        def __init__(self, inner: Any):
            self.inner = inner

        def __call__(self, text: Any, **options: Any) -> Any:
            if options.pop("return_offsets_mapping", False):
                raise NotImplementedError
            return self.inner(text, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    with pytest.raises(DataError, match=r"cannot say where its tokens stand") as error:
        shortened(dolly(), Slow(tokenizer), "none", 100)
    assert "data.long_prompts=skip" in str(error.value.fix)


# --- items ------------------------------------------------------------------------------------------------------------


def item(tmp_path: Path, row: dict[str, Any]) -> Item:
    (tmp_path / "valid.jsonl").write_text(json.dumps(row) + "\n")
    return load("dolly", "valid", folder=tmp_path).items[0]


def test_an_item_loses_of_its_input_before_its_instruction(tokenizer: Any, tmp_path: Path) -> None:
    found = item(tmp_path, {"instruction": ASKED * 3, "input": ARTICLE, "output": "o"})
    short, left_out = fitted(found, tokenizer, "none", 500)
    assert left_out > 0
    assert f"### Instruction:\n{ASKED * 3}\n\n### Input:\nword0 " in short.prompt
    assert num_prompt_tokens(Example(short.prompt, "", ""), tokenizer, "none") <= 500
    assert short.content is not None
    assert short.content in short.prompt
    assert GAP in short.content
    start, end = short.input_span or (0, 0)
    assert short.prompt[start:end].startswith("word0 ")
    assert short.prompt[start:end].endswith(" word119")


def test_an_item_that_is_measured_is_cut_where_it_must_be_and_one_to_train_on_is_not(
    tokenizer: Any, tmp_path: Path
) -> None:
    found = item(tmp_path, {"instruction": ARTICLE, "output": "o"})
    short, left_out = fitted(found, tokenizer, "none", 300)
    assert left_out > 0
    assert num_prompt_tokens(Example(short.prompt, "", ""), tokenizer, "none") <= 300
    assert short.content is not None
    assert GAP in short.content
    assert short.content in short.prompt
    assert shortened(found.example(), tokenizer, "none", 300) == (found.example(), 0)


def test_what_may_be_cut_of_an_item_to_train_on() -> None:
    article = Item("1", "summarize: It rains.\n", ("r",), content="It rains.")
    assert article.example().input_span == (11, 20)
    assert Item("1", "Which? (a) x (b) y", ("x",), options=("x", "y")).example().input_span == (0, 0)
    assert Item("1", "As said, it rains.", ("r",), content="it RAINS").example().input_span == (0, 0)


# --- in a recipe ------------------------------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    made = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(30)]
    for n in range(0, 30, 3):
        made[n]["input"] = f"{n} {ARTICLE}"
    made[1]["instruction"] = ARTICLE
    return made


def test_rows_are_shortened_and_counted_once_and_the_splits_are_those_of_skipping(
    rows_file: Any, tokenizer: Any
) -> None:
    limits: dict[str, Any] = {"format": "dolly", "max_prompt_tokens": 300, "heldout_fraction": 0.3}
    config = Data(path=str(rows_file(rows())), **limits)
    skipped, made = (
        prepare(config, tokenizer),
        prepare(config.model_copy(update={"long_prompts": "shorten"}), tokenizer),
    )
    assert (skipped.counts["skipped_long_prompts"], skipped.counts["shortened_prompts"]) == (11, 0)
    assert (made.counts["skipped_long_prompts"], made.counts["shortened_prompts"]) == (1, 10)
    assert balanced(made.counts) == balanced(skipped.counts) == 30
    assert made.counts["shortened_tokens"] == sum(own["shortened_tokens"] for own in made.counts["splits"].values()) > 0
    for name in ("train", "validation", "heldout"):
        before, after = ({row.example_id for row in getattr(one, name)} for one in (skipped, made))
        assert before <= after
        assert all(len(row.prompt_ids) <= 300 for row in getattr(made, name))
    (one,) = [row for row in made.train + made.validation + made.heldout if row.example_id == "rows.jsonl:4"]
    assert GAP in one.prompt
    assert GAP in tokenizer.decode(one.prompt_ids)
    assert tokenizer.decode(one.response_ids) == "3</s>"


def test_skipping_is_what_happens_where_nothing_is_said(rows_file: Any, tokenizer: Any) -> None:
    long = [{"prompt": "long " * 300, "response": "r"}]
    assert prepare(Data(path=str(rows_file([*good_rows(30), *long]))), tokenizer).counts["skipped_long_prompts"] == 1


@pytest.mark.parametrize("context", ["", "In {lakes}.\n\n### Input:\nand seas"])
def test_the_frame_is_taken_off_as_it_was_put_on(context: str) -> None:
    example = dolly(context=context)
    assert without_frame(example.prompt) == example.content
    assert without_frame("Say 3.") is None


def test_real_articles(data_dir: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt over the limit is shortened to it; the words around the article stand."""
    monkeypatch.setenv("POTSTILL_DATA", str(data_dir))
    files = sorted((data_dir / "cnn_dailymail").iterdir())
    if not any(file.suffix in (".csv", ".jsonl", ".json", ".parquet") for file in files):
        pytest.skip("needs rows of CNN/DailyMail")
    items = load("cnn_dailymail", "test").items[:20]
    for found in items:
        short, left_out = shortened(found.example(), tokenizer, "none", 600)
        assert num_prompt_tokens(short, tokenizer, "none") <= 600
        assert short.prompt.startswith("summarize: ")
        assert (left_out > 0) == (GAP in short.prompt)
