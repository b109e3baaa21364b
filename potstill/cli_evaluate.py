"""``potstill evaluate``, ``suites`` and ``compare``: models measured, on suites or on your own rows, side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli_options import Format, FormatOption, Layout, LayoutOption, RemoteCode
from potstill.errors import ConfigError

EVALUATE_EXAMPLES = (
    "Examples:\n\n"
    "`potstill evaluate first --data rows.jsonl --teacher smollm2-135m-instruct`\n\n"
    "`potstill evaluate models/small --data dolly.jsonl --data-format dolly`\n\n"
    "`potstill evaluate models/t5 --data nli.jsonl --set 'data.prefix=predict: ' --set evaluation.accuracy=exact`\n\n"
    "`potstill evaluate first second smollm2-135m-instruct --suite dolly --suite anli --limit 100 --seed 10`\n\n"
    "`potstill evaluate first --suite anli_r1 --frame 'predict: {prompt}' --frame '{prompt} Answer:'`  two wordings\n\n"
    "`potstill evaluate first --suite plain_text --data stories.txt`"
)
SUITES_EXAMPLE = "Example:\n\n`potstill suites`"
COMPARE_EXAMPLES = (
    "Examples:\n\n`potstill compare first second`\n\n"
    "`potstill compare first second --suite dolly --suite anli_r1 --limit 100 --page compare.html`\n\n"
    "`potstill compare sft-1 minillm-1 --suite dolly --baseline sft-1 published=minillm`"
)

SeedsOption = Annotated[
    list[int] | None, typer.Option("--seed", min=0, help="Of a suite's sampled answers; repeatable.")
]
FramesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--frame", help="Words around a suite's prompts, as 'predict: {prompt}'; repeatable where there are options."
    ),
]


def evaluate(
    ctx: typer.Context,
    models: Annotated[list[str], typer.Argument(metavar="MODEL|RUN...", help="Runs, folders, .gguf files or hub ids.")],
    data: Annotated[str | None, typer.Option(help="Rows of your own: .jsonl, .csv or .parquet.")] = None,
    suite: Annotated[list[str] | None, typer.Option(help="A data set and how it is asked; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Of a suite's items, of each split.")] = None,
    seeds: SeedsOption = None,
    frames: FramesOption = None,
    out: Annotated[Path, typer.Option(help="Where results of suites are kept.")] = Path("evaluations"),
    data_format: LayoutOption = Layout.prompt_response,
    teacher: Annotated[str | None, typer.Option(help="A model to compare with.")] = None,
    max_examples: Annotated[int | None, typer.Option(min=1, help="Rows measured, from the first; else 500.")] = None,
    generate_examples: Annotated[int | None, typer.Option(min=0, help="Rows answered; else 32. 0: none.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Where an answer is cut; else where the run or the suite does, or at 96.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Of a recipe's data and evaluation; else as the run has it."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Measure models: on suites, or on rows of your own, of which all count as held-out."""
    from potstill import api

    shared: dict[str, Any] = {"device": device, "allow_remote_code": allow_remote_code}
    if suite:
        _refuse(ctx, ("teacher", "data_format", "max_examples", "generate_examples", "settings"), "is not for suites")
        asked: dict[str, Any] = {"limit": limit, "seeds": seeds, "frames": frames, "data": data}
        results = api.evaluate_suites(models, suite, out=out, max_new_tokens=max_new_tokens, **asked, **shared)
        _print_suites(results, format)
        return
    _refuse(ctx, ("limit", "seeds", "frames", "out"), "is for suites, and none is named")
    if data is None:
        raise ConfigError("there is nothing to measure on", "add --data FILE, or --suite NAME (see `potstill suites`)")
    counts = {"max_examples": max_examples, "generate_examples": generate_examples, "max_new_tokens": max_new_tokens}
    given: dict[str, Any] = {f"evaluation.{name}": count for name, count in counts.items() if count}
    given |= {"data.format": data_format.value, **_rows_settings(settings or []), **shared}
    for model in models:
        figures = api.evaluate(model, data=data, teacher=teacher, answers=generate_examples != 0, **given)
        _print_figures(({"model": model} if len(models) > 1 else {}) | figures, format)


def _rows_settings(words: list[str]) -> dict[str, Any]:
    """What --set says about rows and about how they are asked. Raises: ConfigError."""
    from potstill.recipe_io import parse_overrides

    for word in words:
        if not word.startswith(("data.", "evaluation.")) or word.startswith(("data.path=", "data.heldout=")):
            raise ConfigError(
                f"--set {word} is not about how rows are read or asked",
                "settings are written as data.fields.prompt=question or evaluation.accuracy=exact",
            )
    return parse_overrides(words)


def suites(format: FormatOption = Format.human) -> None:
    """List the suites: data sets, and how models are asked about them."""
    from potstill.evaluation.suites import GROUPS, SUITES

    lines = {name: one.about + ("" if one.dataset else "; of a file that --data names") for name, one in SUITES.items()}
    lines |= {name: "all of " + ", ".join(members) for name, members in GROUPS.items()}
    if format is Format.json:
        print(json.dumps(lines, indent=2))
    else:
        width = max(map(len, lines))
        print("\n".join(f"{name:{width}}  {line}" for name, line in lines.items()))


def compare(
    ctx: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN... [published=FILE]", help="Names under runs/, or paths; figures of others."),
    ],
    suite: Annotated[list[str] | None, typer.Option(help="A suite that all models are asked; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Of a suite's items, of each split.")] = None,
    seeds: SeedsOption = None,
    frames: FramesOption = None,
    data: Annotated[str | None, typer.Option(help="Rows of your own, for a suite without a data set.")] = None,
    out: Annotated[Path, typer.Option(help="Where results of suites are kept.")] = Path("evaluations"),
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Where an answer is cut.")] = None,
    baseline: Annotated[str | None, typer.Option(help="A model of the table that the others are set against.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the comparison as HTML, with the answers.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Put runs side by side: figures, what of them is more than chance, and what cannot be compared."""
    from potstill import api
    from potstill.reporting.comparison import markdown

    if not suite:
        _refuse(ctx, ("limit", "seeds", "frames", "data", "out", "max_new_tokens"), "is for suites, and none is named")
    named = [word.removeprefix("published=") for word in runs if word.startswith("published=")]
    if len(named) > 1:
        raise ConfigError("published= stands twice", "put the figures into one file, or use published=all")
    asked: dict[str, Any] = {"limit": limit, "seeds": seeds, "frames": frames, "data": data, "out": out}
    asked["max_new_tokens"] = max_new_tokens
    found = api.compare(
        [word for word in runs if not word.startswith("published=")],
        suites=suite or (),
        baseline=baseline,
        published=named[0] if named else None,
        page=page,
        allow_remote_code=allow_remote_code,
        device=device,
        **asked,
    )
    print(json.dumps(markdown.as_json(found), indent=2) if format is Format.json else markdown.markdown(found))
    if page:
        print(f"wrote {page}", file=sys.stderr)


def _refuse(ctx: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options that were given and would be passed over."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"{parameter.opts[0]} {why}", "leave it out; --help has examples of both")


def _print_suites(results: list[Any], format: Format) -> None:
    """Results of suites as tables, or with everything that is known of each."""
    from potstill.reporting.suites import markdown

    if format is Format.json:
        told = [result.settings | {"scores": result.scores, "folder": str(result.folder)} for result in results]
        print(json.dumps(told, indent=2))
    else:
        print(markdown(results))


def _print_figures(figures: dict[str, Any], format: Format) -> None:
    if format is Format.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")
