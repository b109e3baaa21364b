"""``potstill data``: what is in a data set, and what a model sees of a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli_options import Format, FormatOption, Framing, FramingOption, Layout, LayoutOption

SHOWN_PAIRS = 5

app = typer.Typer(no_args_is_help=True, help="Look at data before it is trained on.")


@app.command("ls", epilog="Example:\n\n`potstill data ls`")
def ls(format: FormatOption = Format.human) -> None:
    """List the named data sets and their splits."""
    from potstill.data.catalogue import DATASETS

    lines = {name: {"title": found.card.title, "splits": list(found.splits)} for name, found in DATASETS.items()}
    if format is Format.json:
        print(json.dumps(lines, indent=2))
        return
    width = max(map(len, lines))
    for name, line in lines.items():
        print(f"{name:{width}}  {line['title']}; {', '.join(line['splits'])}")


@app.command(
    "card", epilog="Examples:\n\n`potstill data card dolly valid`\n\n`potstill data card anli r1_dev --format json`"
)
def card(
    name: Annotated[str, typer.Argument(help="A data set, see `potstill data ls`.")],
    split: Annotated[str, typer.Argument(help="One of its splits.")],
    format: FormatOption = Format.human,
) -> None:
    """Read a split and say what it is: source, licence, counts, hashes, and what goes wrong with it."""
    from potstill.data import catalogue

    found = catalogue.card(name, split, catalogue.load(name, split))
    as_json = format is Format.json
    print(json.dumps(found, indent=2, ensure_ascii=False) + "\n" if as_json else catalogue.card_text(found), end="")


@app.command("audit", epilog="Example:\n\n`potstill data audit train.jsonl test.jsonl --format json`")
def audit(
    train: Annotated[Path, typer.Argument(help="Rows that are trained on.")],
    test: Annotated[Path, typer.Argument(help="Rows that are measured on.")],
    data_format: LayoutOption = Layout.prompt_response,
    threshold: Annotated[float, typer.Option(min=0.01, max=1, help="Similarity of near duplicates.")] = 0.8,
    format: FormatOption = Format.human,
) -> None:
    """Say what two files have in common: whole rows, runs of eight words, and rows that are nearly the same."""
    from potstill.data.audit import audit as compared
    from potstill.recipe import Data

    found = compared(train, test, Data.model_validate({"format": data_format.value}), threshold=threshold)
    if format is Format.json:
        pairs = {"across": found.across, "within_train": found.within}
        print(json.dumps(found.figures | {name: [vars(p) for p in some] for name, some in pairs.items()}, indent=2))
        return
    for name, value in found.figures.items():
        print(f"{name:30} {value}")
    for title, some in (("test and train", found.across), ("train and train", found.within)):
        for pair in some[:SHOWN_PAIRS]:
            print(f"{title}: {pair.one} and {pair.other}, {pair.similarity:.0%} alike")


@app.command(
    "prepare",
    epilog="Examples:\n\n`potstill data prepare stories.txt --model models/big --out corpus`\n\n"
    "`potstill data prepare part1.parquet part2.parquet --model gpt2 --out owt --valid-blocks 10000 --workers 8`",
)
def prepare(
    files: Annotated[list[Path], typer.Argument(help="Documents: .txt (one a line), .jsonl, .csv or .parquet.")],
    out: Annotated[Path, typer.Option(help="A folder that is not there yet.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer is used.")] = "smollm2-135m-instruct",
    field: Annotated[str, typer.Option(help="The field or column of the text; not asked of .txt files.")] = "text",
    block_size: Annotated[int, typer.Option(min=2, help="Tokens of a block.")] = 512,
    blocks: Annotated[int | None, typer.Option(min=1, help="Train blocks at most.")] = None,
    valid_blocks: Annotated[int, typer.Option(min=0, help="The first so many are for validation.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that tokenise; the result is the same.")] = 1,
    format: FormatOption = Format.human,
) -> None:
    """Turn documents into blocks of tokens in a binary corpus (.bin/.idx) that opens in constant memory."""
    from potstill.data.corpus import build_corpus
    from potstill.models.loading import load_tokenizer

    made = build_corpus(
        files,
        load_tokenizer(model),
        out,
        field=field,
        block_size=block_size,
        num_blocks=blocks,
        dev_blocks=valid_blocks,
        workers=workers,
    )
    if format is Format.json:
        print(json.dumps(made, indent=2))
    else:
        print("\n".join(f"{name:20} {value}" for name, value in made.items() if not isinstance(value, dict | list)))
        print(f"wrote {out}")


@app.command(
    "inspect",
    epilog="Examples:\n\n`potstill data inspect rows.jsonl --model smollm2-135m-instruct`\n\n"
    "`potstill data inspect dolly.jsonl --data-format dolly --model models/small --rows 5`",
)
def inspect(
    file: Annotated[str, typer.Argument(help='Rows: .jsonl, .csv or .parquet, a split as "cqa:train", or "starter".')],
    model: Annotated[str, typer.Option(help="Whose tokenizer and template are used.")] = "smollm2-135m-instruct",
    data_format: LayoutOption = Layout.prompt_response,
    template: FramingOption = Framing.auto,
    rows: Annotated[int, typer.Option(min=1, help="How many, from the first.")] = 3,
    format: FormatOption = Format.human,
) -> None:
    """Show rows as the model sees them: what the loss is about in green, the tokenizer's own marks in bold."""
    from potstill.data.inspect import pieces
    from potstill.data.prepare import prepare_all
    from potstill.models.loading import load_tokenizer
    from potstill.recipe import Data

    tokenizer = load_tokenizer(model)
    config = Data.model_validate({"path": file, "format": data_format.value, "template": template.value})
    found = [(row, list(pieces(row, tokenizer))) for row in prepare_all(config, tokenizer)[:rows]]
    if format is Format.json:
        print(json.dumps([{"id": row.example_id, "pieces": [vars(p) for p in some]} for row, some in found], indent=2))
        return
    for row, some in found:
        _show(row, some)


def _show(row: Any, some: list[Any]) -> None:
    """One row in colour; the end of a line that is cut is said."""
    from rich.console import Console
    from rich.text import Text

    console, shown = Console(), Text()
    for piece in some:
        style = " ".join(["green" if piece.scored else "default", *(["bold"] if piece.special else [])])
        shown.append(piece.text, style=style)
    size = f"{len(row.prompt_ids)} tokens asked, {len(row.response_ids)} scored"
    console.rule(f"{row.example_id}: {size}{', cut' if row.truncated else ''}", characters="-")
    console.print(shown)
