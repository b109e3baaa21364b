"""The command line: parses, calls, prints. Nothing else happens here, and nothing heavy is imported before it must."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Annotated, Any, NoReturn

import typer

from potstill.cli_annotate import EPILOG as ANNOTATE_EXAMPLES
from potstill.cli_annotate import annotate
from potstill.cli_attribute import EPILOG as ATTRIBUTE_EXAMPLES
from potstill.cli_attribute import attribute
from potstill.cli_cache import app as cache_app
from potstill.cli_data import app as data_app
from potstill.cli_evaluate import COMPARE_EXAMPLES, EVALUATE_EXAMPLES, SUITES_EXAMPLE, compare, evaluate, suites
from potstill.cli_harness import EPILOG as HARNESS_EXAMPLES
from potstill.cli_harness import harness
from potstill.cli_judge import app as judge_app
from potstill.cli_options import Format, FormatOption, RemoteCode
from potstill.cli_plan import EPILOG as PLAN_EXAMPLES
from potstill.cli_plan import plan
from potstill.cli_recipes import app as recipes_app
from potstill.cli_sweep import EPILOG as SWEEP_EXAMPLES
from potstill.cli_sweep import sweep
from potstill.errors import PotstillError

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


app.command("plan", epilog=PLAN_EXAMPLES)(plan)
app.command("evaluate", epilog=EVALUATE_EXAMPLES)(evaluate)
app.command("suites", epilog=SUITES_EXAMPLE)(suites)
app.command("compare", epilog=COMPARE_EXAMPLES)(compare)
app.command("sweep", epilog=SWEEP_EXAMPLES)(sweep)
app.command("annotate", epilog=ANNOTATE_EXAMPLES)(annotate)
app.command("attribute", epilog=ATTRIBUTE_EXAMPLES)(attribute)
app.command("harness", epilog=HARNESS_EXAMPLES)(harness)
app.add_typer(cache_app, name="cache")
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.add_typer(judge_app, name="judge")


def _print_tried(tried: list[Any], format: Format) -> None:
    """What a dry run found of each stage."""
    from potstill.checks.dry.told import told

    print(json.dumps([asdict(stage) for stage in tried], indent=2) if format is Format.json else told(tried))


def _print_run(run: Any, format: Format) -> None:
    """A finished run: its table and where things are. Only the main process prints."""
    from potstill.training.runtime import is_main

    if not is_main():
        return
    from potstill.reporting.summary import places, summary

    if format is Format.json:
        print(json.dumps(summary(run), indent=2))
        return
    from rich.console import Console

    from potstill.reporting.routes import beside
    from potstill.reporting.stages import rich_stages
    from potstill.reporting.tables import rich_table, verdict

    console = Console()
    if run.stages:
        console.print(rich_stages(run))
    console.print(rich_table(run.result))
    for sentence in (*verdict(run.result), *beside(run)):
        console.print(sentence, markup=False, highlight=False)
    console.print("\n" + "\n".join(places(run)), markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; every failure a user can cause is one line with its fix and an exit code."""
    # Before torch is imported: spinning threads starve each other on a busy machine (docs/decisions, 11).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Of products of shapes that do not come again oneDNN would keep 1,024 (docs/decisions, 45).
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
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
