"""``potstill data``: what is in a data set, and what a model sees of a row."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli_options import Format, FormatOption, Framing, FramingOption, Layout, LayoutOption

SHOWN_PAIRS = 5
SETTING = re.compile(r"data\.[a-z_.]+=")  # of a recipe, where files are named too
PLACES = 'a file, a split as "dolly:dev", or "starter"'
SettingsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="settings", help="Of how rows are read: data.max_bad_rows=0.1.")
]
OF_DOCUMENTS = {  # options, as build_corpus calls them, and their values where they are not given
    "--field": ("field", "text"),
    "--block-size": ("block_size", 512),
    "--blocks": ("num_blocks", None),
    "--valid-blocks": ("dev_blocks", 0),
}

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
    "card", epilog="Examples:\n\n`potstill data card dolly valid`\n\n`potstill data card anli:r1_dev --format json`"
)
def card(
    name: Annotated[str, typer.Argument(help='A data set, see `potstill data ls`, or a split as "anli:r1_dev".')],
    split: Annotated[str | None, typer.Argument(help="One of its splits, where the name has none.")] = None,
    format: FormatOption = Format.human,
) -> None:
    """Read a split and say what it is: source, licence, counts, hashes, and what goes wrong with it."""
    from potstill.data import catalogue

    name, split = _one_split(name, split)
    found = catalogue.card(name, split, catalogue.load(name, split))
    as_json = format is Format.json
    print(json.dumps(found, indent=2, ensure_ascii=False) + "\n" if as_json else catalogue.card_text(found), end="")


def _one_split(name: str, split: str | None) -> tuple[str, str]:
    """``anli:r1_dev``, or ``anli`` and ``r1_dev``. Raises: ConfigError where no split is named, or two are."""
    from potstill.data.catalogue import splits_of
    from potstill.errors import ConfigError

    name, _, inside = name.partition(":")
    known = splits_of(name)
    if inside and split:
        raise ConfigError(f"two splits of {name} are named, {inside} and {split}", "name one")
    if not (inside or split):
        raise ConfigError(f"no split of {name} is named", f"name one, as {name}:{known[0]}: it has {', '.join(known)}")
    return name, inside or split or ""


@app.command(
    "audit",
    epilog="Examples:\n\n`potstill data audit train.jsonl test.jsonl --format json`\n\n"
    "`potstill data audit dolly:train dolly:valid`\n\n"
    "With settings as a recipe has them:\n\n`potstill data audit train.csv test.csv data.fields.prompt=question`",
)
def audit(
    train: Annotated[str, typer.Argument(help=f"Rows that are trained on: {PLACES}.")],
    test: Annotated[str, typer.Argument(help=f"Rows that are measured on: {PLACES}.")],
    settings: SettingsArgument = None,
    data_format: LayoutOption = Layout.prompt_response,
    threshold: Annotated[float, typer.Option(min=0.01, max=1, help="Similarity of near duplicates.")] = 0.8,
    format: FormatOption = Format.human,
) -> None:
    """Say what two files have in common: whole rows, runs of eight words, and rows that are nearly the same."""
    from potstill.data.audit import audit as compared

    found = compared(train, test, _layout({"data.format": data_format.value}, settings), threshold=threshold)
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
    epilog="Documents:\n\n`potstill data prepare stories.txt --model models/big --out corpus`\n\n"
    "`potstill data prepare part1.parquet part2.parquet --model gpt2 --out owt --valid-blocks 10000 --workers 8`\n\n"
    "Rows, with settings as a recipe has them:\n\n"
    "`potstill data prepare --rows rows.jsonl --model models/small --out rows data.max_prompt_tokens=512`\n\n"
    "`potstill data prepare --rows dolly:train --model gpt2 --out dolly --workers 8`",
)
def prepare(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Documents: .txt (one a line), .jsonl, .csv or .parquet. With --rows one file of rows, or a split as "
            '"cqa:train"; and settings: data.heldout=test.jsonl.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="A folder that is not there yet.")],
    rows: Annotated[
        bool, typer.Option("--rows/--documents", help="Prompts with responses, or text; text where neither is said.")
    ] = False,
    model: Annotated[str, typer.Option(help="Whose tokenizer is used.")] = "smollm2-135m-instruct",
    data_format: Annotated[
        Layout | None, typer.Option("--data-format", help="How rows are laid out; prompt_response where unset.")
    ] = None,
    field: Annotated[str, typer.Option(help="Of documents: the field of the text; not asked of .txt files.")] = "text",
    block_size: Annotated[int, typer.Option(min=2, help="Of documents: tokens of a block.")] = 512,
    blocks: Annotated[int | None, typer.Option(min=1, help="Of documents: train blocks at most.")] = None,
    valid_blocks: Annotated[int, typer.Option(min=0, help="Of documents: the first so many are for validation.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that tokenise; the result is the same.")] = 1,
    format: FormatOption = Format.human,
) -> None:
    """Tokenise before training: documents into a binary corpus (.bin/.idx), or rows into Arrow files.

    Both open in constant memory, and are never half-written.
    """
    packing = {"field": field, "block_size": block_size, "num_blocks": blocks, "dev_blocks": valid_blocks}
    work = _prepare_rows if rows else _prepare_documents
    made, told = work(files, out, model, data_format, packing, workers)
    if format is Format.json:
        print(json.dumps(made, indent=2))
    else:
        print("\n".join([*told, f"wrote {out}"]))


def _prepare_documents(
    files: list[str], out: Path, model: str, data_format: Layout | None, packing: dict[str, Any], workers: int
) -> tuple[dict[str, Any], list[str]]:
    """Build a corpus: its card, and what is said of it."""
    from potstill.data.corpus import build_corpus
    from potstill.data.prepared.kinds import check_documents
    from potstill.errors import ConfigError
    from potstill.models.loading import load_tokenizer

    settings = ["--data-format"] if data_format else [file for file in files if SETTING.match(file)]
    if settings:
        raise ConfigError(f"{settings[0]} is of rows, and documents are prepared without --rows", "add --rows")
    check_documents(files, packing["field"])
    made = build_corpus([Path(file) for file in files], load_tokenizer(model), out, workers=workers, **packing)
    return made, [f"{name:20} {value}" for name, value in made.items() if not isinstance(value, dict | list)]


def _prepare_rows(
    files: list[str], out: Path, model: str, data_format: Layout | None, packing: dict[str, Any], workers: int
) -> tuple[dict[str, Any], list[str]]:
    """Write a folder of tokenised rows: its card, and what is said of it."""
    from potstill.data.prepared.building import prepare_rows
    from potstill.data.prepared.card import overrides_of
    from potstill.data.prepared.kinds import check_rows, one_place
    from potstill.errors import ConfigError
    from potstill.models.loading import load_tokenizer

    if given := [name for name, (key, unset) in OF_DOCUMENTS.items() if packing[key] != unset]:
        raise ConfigError(f"{given[0]} is of documents, and --rows is for rows", "remove one of them")
    place = one_place([file for file in files if not SETTING.match(file)])
    check_rows(place)
    named = {"data.path": place} | ({"data.format": data_format.value} if data_format else {})
    config = _data(named, [file for file in files if SETTING.match(file)])
    made = prepare_rows(config, load_tokenizer(model), out, workers=workers)
    counts = {name: value for name, value in made.counts.items() if not isinstance(value, dict)}
    use = " ".join(["potstill train kd", f"data={out}", *overrides_of(made)])
    return made.model_dump(mode="json"), [*(f"{name:24} {value}" for name, value in counts.items()), f"use it: {use}"]


def _data(named: dict[str, Any], settings: list[str]) -> Any:
    """How rows are read: of any recipe, so that its settings are named and checked as everywhere."""
    from potstill.recipe_io import load, parse_overrides
    from potstill.recipes import METHODS

    return load("sft", named | parse_overrides(settings), methods=METHODS).stage.data


def _layout(named: dict[str, Any], settings: list[str] | None) -> Any:
    """Likewise, of rows that are named as arguments. Raises: ConfigError for other rows, and what is of no data."""
    from potstill.errors import ConfigError

    for setting in settings or []:
        if setting.startswith(("data.path=", "data.heldout=")) or not SETTING.match(setting):
            fix = "settings are written as data.max_bad_rows=0.1, and files come before them"
            raise ConfigError(f"{setting!r} does not say how rows are read", fix)
    return _data(named, settings or [])


@app.command(
    "inspect",
    epilog="Examples:\n\n`potstill data inspect rows.jsonl --model smollm2-135m-instruct`\n\n"
    "`potstill data inspect dolly.jsonl --data-format dolly --model models/small --rows 5`",
)
def inspect(
    file: Annotated[str, typer.Argument(help='Rows: a file, a prepared folder, a split as "cqa:train", "starter".')],
    settings: SettingsArgument = None,
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

    named = {"data.path": file, "data.format": data_format.value, "data.template": template.value}
    config = _layout(named, settings)
    tokenizer = load_tokenizer(model)
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
