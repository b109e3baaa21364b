"""The command line: parses, calls, prints. Nothing else happens here, and nothing heavy is imported before it must."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from potstill.cli_annotate import EPILOG as ANNOTATE_EXAMPLES
from potstill.cli_annotate import annotate
from potstill.cli_data import app as data_app
from potstill.cli_harness import EPILOG as HARNESS_EXAMPLES
from potstill.cli_harness import harness
from potstill.cli_judge import app as judge_app
from potstill.cli_options import Format, FormatOption, Layout, LayoutOption, RemoteCode
from potstill.cli_sweep import EPILOG as SWEEP_EXAMPLES
from potstill.cli_sweep import sweep
from potstill.errors import ConfigError, PotstillError

STOPPED = "stopped; the same command goes on with what it has finished, if anything of it is kept"

app = typer.Typer(
    name="potstill",
    help="Distil large language models into small ones.",
    epilog="First result: `potstill train kd`  -  the report's path is printed at the end.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(no_args_is_help=True, help="List, show and copy the built-in recipes.")
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.add_typer(judge_app, name="judge")
app.command("harness", epilog=HARNESS_EXAMPLES)(harness)
app.command("annotate", epilog=ANNOTATE_EXAMPLES)(annotate)
app.command("sweep", epilog=SWEEP_EXAMPLES)(sweep)


SeedsOption = Annotated[
    list[int] | None, typer.Option("--seed", min=0, help="Of a suite's sampled answers; repeatable.")
]
FramesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--frame", help="Words around a suite's prompts, as 'predict: {prompt}'; repeatable where there are options."
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the recipe.")]


@app.command(
    epilog="Examples:\n\n"
    "`potstill train kd`  the embedded teacher, a student of 10 of its 30 layers, the starter data\n\n"
    "`potstill train gkd student=runs/kd-1/student`  on text of the student that the first run has made\n\n"
    "`potstill train kd teacher=models/big student.keep_layers=12 data=rows.jsonl run=first`\n\n"
    "`potstill train kd data=dolly.jsonl data.format=dolly divergence=reverse_kl budget.epochs=2`\n\n"
    "`potstill train my-recipe.yaml seed=2`  a copy made with `potstill recipes cp kd my-recipe.yaml`\n\n"
    "`potstill train anli_minillm --dry-run`  whether it would run, with models and data that are not here\n\n"
    "`torchrun --nproc-per-node 2 -m potstill train kd`  on two processes"
)
def train(
    recipe: Annotated[str, typer.Argument(metavar="METHOD|RECIPE.yaml", help="A built-in method or a recipe file.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One step of each stage, with stand-ins for what is not here.")
    ] = False,
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Run a recipe in a new folder under runs/, and write its report."""
    from potstill import api, recipe_io

    settings = recipe_io.parse_overrides(overrides or [])
    if dry_run:
        _print_tried(api.dry_run(recipe, allow_remote_code=allow_remote_code, **settings), format)
        return
    _print_run(api.train(recipe, allow_remote_code=allow_remote_code, **settings), format)


@app.command(epilog="Examples:\n\n`potstill resume first`\n\n`potstill resume latest`")
def resume(
    run: Annotated[str, typer.Argument(help="A name under runs/, or a path.")],
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Go on with a run that was stopped, from its newest whole checkpoint."""
    from potstill import api

    _print_run(api.resume(run, allow_remote_code=allow_remote_code), format)


@app.command(
    epilog="Examples:\n\n"
    "`potstill evaluate first --data rows.jsonl --teacher smollm2-135m-instruct`\n\n"
    "`potstill evaluate models/small --data dolly.jsonl --data-format dolly`\n\n"
    "`potstill evaluate first second smollm2-135m-instruct --suite dolly --suite anli --limit 100 --seed 10`\n\n"
    "`potstill evaluate first --suite anli_r1 --frame 'predict: {prompt}' --frame '{prompt} Answer:'`  two wordings\n\n"
    "`potstill evaluate first --suite plain_text --data stories.txt`"
)
def evaluate(
    ctx: typer.Context,
    models: Annotated[list[str], typer.Argument(metavar="MODEL|RUN...", help="Runs, folders, .gguf files or hub ids.")],
    data: Annotated[str | None, typer.Option(help="Rows of your own: .jsonl, .csv or .parquet.")] = None,
    suite: Annotated[list[str] | None, typer.Option(help="A data set and how it is asked; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Of a suite's items, of each split.")] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", min=0, help="Of a suite's sampled answers; repeatable.")
    ] = None,
    frames: FramesOption = None,
    out: Annotated[Path, typer.Option(help="Where results of suites are kept.")] = Path("evaluations"),
    data_format: LayoutOption = Layout.prompt_response,
    teacher: Annotated[str | None, typer.Option(help="A model to compare with.")] = None,
    max_examples: Annotated[int, typer.Option(min=1, help="Rows measured, from the first.")] = 500,
    generate_examples: Annotated[int, typer.Option(min=0, help="Rows answered, for Rouge-L.")] = 32,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Where an answer is cut; else 96, or where the suite does.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Measure models: on suites, or on rows of your own, of which all count as held-out."""
    from potstill import api

    shared: dict[str, Any] = {"device": device, "allow_remote_code": allow_remote_code}
    shared |= {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    if suite:
        _refuse(ctx, ("teacher", "data_format", "max_examples", "generate_examples"), "is not for suites")
        asked: dict[str, Any] = {"limit": limit, "seeds": seeds, "frames": frames, "data": data}
        results = api.evaluate_suites(models, suite, out=out, **asked, **shared)
        _print_suites(results, format)
        return
    _refuse(ctx, ("limit", "seeds", "frames", "out"), "is for suites, and none is named")
    if data is None:
        raise ConfigError("there is nothing to measure on", "add --data FILE, or --suite NAME (see `potstill suites`)")
    for model in models:
        figures = api.evaluate(
            model,
            data=data,
            data_format=data_format.value,
            teacher=teacher,
            max_examples=max_examples,
            generate_examples=generate_examples,
            **shared,
        )
        _print_figures(({"model": model} if len(models) > 1 else {}) | figures, format)


def _refuse(ctx: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options that were given and would be passed over."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"{parameter.opts[0]} {why}", "leave it out; --help has examples of both")


@app.command(epilog="Example:\n\n`potstill suites`")
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


@app.command(epilog="Examples:\n\n`potstill report latest`\n\n`potstill report first --format json`")
def report(
    run: Annotated[str, typer.Argument(help="A name under runs/, or a path.")],
    format: FormatOption = Format.human,
) -> None:
    """Write a run's report again, and print its table."""
    from potstill import api
    from potstill import run as runs

    api.report(run)
    _print_run(runs.find(run), format)


@app.command(
    epilog="Examples:\n\n`potstill compare first second`\n\n"
    "`potstill compare first second --suite dolly --suite anli_r1 --limit 100 --page compare.html`\n\n"
    "`potstill compare sft-1 minillm-1 --suite dolly --baseline sft-1 published=minillm`"
)
def compare(
    ctx: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN... [published=FILE]", help="Names under runs/, or paths; figures of others."),
    ],
    suite: Annotated[list[str] | None, typer.Option(help="A suite that all models are asked; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Of a suite's items, of each split.")] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", min=0, help="Of a suite's sampled answers; repeatable.")
    ] = None,
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


@app.command(
    epilog="Examples:\n\n`potstill doctor`\n\n"
    "`potstill doctor kd teacher=models/big student=models/small`  will these two work together?"
)
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[METHOD|RECIPE.yaml]", help="A recipe to check.")] = None,
    overrides: Overrides = None,
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Check this machine, and a recipe's models and data, before any hour is spent on them."""
    from potstill.checks import doctor as checks
    from potstill.recipe_io import parse_overrides
    from potstill.recipes import METHODS

    findings = checks.machine()
    if recipe:
        findings += checks.recipe(recipe, parse_overrides(overrides or []), METHODS, allow_remote_code)
    if format is Format.json:
        print(json.dumps([finding.__dict__ for finding in findings], indent=2))
    else:
        print("\n".join(map(str, findings)))
    if any(finding.status == "bad" for finding in findings):
        raise typer.Exit(2)


@app.command(
    epilog="Examples:\n\n`potstill selftest`  the demo's pair of models\n\n"
    "`potstill selftest teacher=models/big student=models/small data=rows.jsonl`\n\n"
    "`potstill selftest divergence=skew_forward_kl weighting=top_fraction`  the loss you are about to train on\n\n"
    "`potstill selftest recipe.yaml`"
)
def selftest(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[METHOD|RECIPE.yaml] [KEY=VALUE]...", help="A recipe (or kd) and its settings."),
    ] = None,
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Try on your own models what every distillation loss must obey, and how good each approximation is."""
    from potstill.checks.selftest import selftest as run_checks
    from potstill.recipe_io import parse_overrides
    from potstill.recipes import METHODS

    words = overrides or []
    target = words.pop(0) if words and "=" not in words[0] else "kd"
    checks = []
    for check in run_checks(target, parse_overrides(words), METHODS, allow_remote_code):
        checks.append(check)
        if format is Format.human:
            print(check, flush=True)
    failed = [check for check in checks if not check.passed]
    if format is Format.json:
        print(json.dumps([asdict(check) | {"passed": check.passed} for check in checks], indent=2))
    else:
        print(f"{len(failed)} of {len(checks)} failed" if failed else f"all {len(checks)} hold")
    if failed:
        raise typer.Exit(1)


@recipes_app.command("ls")
def recipes_ls(format: FormatOption = Format.human) -> None:
    """List the built-in recipes."""
    from potstill.recipes import METHODS

    lines = {name: (method.__doc__ or "").strip().splitlines()[0] for name, method in METHODS.items()}
    if format is Format.json:
        print(json.dumps(lines, indent=2))
    else:
        width = max(map(len, lines))
        print("\n".join(f"{name:{width}}  {line}" for name, line in lines.items()))


@recipes_app.command("show", epilog="Example:\n\n`potstill recipes show kd`")
def recipes_show(name: str, format: FormatOption = Format.human) -> None:
    """Print a built-in recipe: what it does, its parameters, where defaults come from, then every setting."""
    from potstill import recipe_io
    from potstill.recipes import METHODS

    recipe = recipe_io.load(name, methods=METHODS)
    if format is Format.json:
        print(recipe.model_dump_json(indent=2))
        return
    prose = (sys.modules[METHODS[name].__module__].__doc__ or "").strip()
    prose += f"\n\nParameters, as in `potstill train {name} KEY=VALUE`:\n\n{_parameters(METHODS[name])}"
    print("".join(f"# {line}".rstrip() + "\n" for line in prose.splitlines()), end="")
    print(recipe_io.dump(recipe), end="")


@recipes_app.command(
    "cp", epilog="Example:\n\n`potstill recipes cp kd my-recipe.yaml`, edit it, then `potstill train my-recipe.yaml`"
)
def recipes_cp(name: str, file: Path, format: FormatOption = Format.human) -> None:
    """Copy a built-in recipe to a file of your own."""
    from potstill import recipe_io
    from potstill.recipes import METHODS
    from potstill.run import write_text

    if file.exists():
        raise ConfigError(f"{file} exists already, and is not overwritten", "choose another name")
    write_text(file, recipe_io.dump(recipe_io.load(name, methods=METHODS)))
    print(
        json.dumps({"file": str(file)})
        if format is Format.json
        else f"wrote {file}; run it with `potstill train {file}`"
    )


def _print_tried(tried: list[Any], format: Format) -> None:
    """What a dry run found of each stage."""
    from potstill.checks.dry.told import told

    print(json.dumps([asdict(stage) for stage in tried], indent=2) if format is Format.json else told(tried))


def _print_run(run: Any, format: Format) -> None:
    """A finished run: its table and where things are. Only the main process prints."""
    from potstill.training.runtime import is_main

    if not is_main():
        return
    from potstill.reporting.summary import summary

    if format is Format.json:
        print(json.dumps(summary(run), indent=2))
        return
    from rich.console import Console

    from potstill.reporting.stages import rich_stages
    from potstill.reporting.tables import rich_table, verdict

    console = Console()
    if run.stages:
        console.print(rich_stages(run))
    console.print(rich_table(run.result))
    for sentence in verdict(run.result):
        console.print(sentence, markup=False, highlight=False)
    console.print(
        f"\nstudent  {run.student}\nreport   {run.report_file}", markup=False, highlight=False, soft_wrap=True
    )


def _parameters(method: Callable[..., Any]) -> str:
    """The parameters of a recipe with their defaults, and what its docstring says of them."""
    _, _, told = inspect.cleandoc(method.__doc__ or "").partition("Args:\n")
    described = dict(line.strip().split(": ", 1) for line in told.splitlines() if ": " in line)
    defaults = {name: p.default for name, p in inspect.signature(method).parameters.items()}
    shown = {name: f"{name}={_plainly(default)}" for name, default in defaults.items()}
    width = max(map(len, shown.values()), default=0)
    return "\n".join(f"    {shown[name]:{width}}  {described.get(name, '')}" for name in defaults)


def _plainly(default: Any) -> str:
    """A default as it is written on the command line; a section by its name, or by what its shorthand stands for."""
    if hasattr(default, "name"):
        return str(default.name)
    if shorthand := getattr(default, "shorthand", None):
        default = getattr(default, shorthand)
    return "null" if default is None else json.dumps(default)


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


def main() -> None:
    """Run the command line; every failure a user can cause is one line with its fix and an exit code."""
    # Before torch is imported: spinning threads starve each other on a busy machine (docs/decisions, 11).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(standalone_mode=False)
    except PotstillError as error:
        _fail(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        _fail(STOPPED, 130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        _fail(f"error: {error}\n  fix: see that there is room on the disk and that the folder may be written to", 1)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        if hasattr(error, "show"):
            error.show()
        sys.exit(error.exit_code)
    else:
        if code == 130:  # what the library makes of Ctrl-C
            _fail(STOPPED, 130)
    finally:
        if runtime := sys.modules.get("potstill.training.runtime"):
            runtime.stop()
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
