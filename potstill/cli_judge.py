"""``potstill judge``: answers of a suite marked side by side by another model, or by a person."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli_options import Format, FormatOption
from potstill.errors import PotstillError
from potstill.served.stopping import stoppable

app = typer.Typer(no_args_is_help=True, help="Have answers marked side by side, by a model or by hand.")

PairsFile = Annotated[Path, typer.Argument(metavar="PAIRS.jsonl", help="What `potstill judge export` wrote.")]


@app.command(
    "export",
    epilog="Examples:\n\n`potstill judge export evaluations/vicuna-0123456789abcdef --out pairs.jsonl`\n\n"
    "`potstill judge export evaluations/dolly-aa --against evaluations/dolly-bb --prediction seed_10 --out p.jsonl`",
)
def export(
    result: Annotated[Path, typer.Argument(help="The folder of one result of `potstill evaluate --suite`.")],
    out: Annotated[Path, typer.Option(help="A .jsonl file that is not there yet.")],
    against: Annotated[str, typer.Option(help='"reference", or another model\'s result.')] = "reference",
    prediction: Annotated[str, typer.Option(help="Which answers: greedy, or seed_10 and so on.")] = "greedy",
    seed: Annotated[int, typer.Option(help="Of the fences, and of which answer stands first.")] = 0,
    format: FormatOption = Format.human,
) -> None:
    """Write a line for each item: the question, two answers, and a prompt for a judge in which both are fenced."""
    from potstill.evaluation.judge import make_pairs, write_pairs

    pairs = make_pairs(result, against, prediction=prediction, seed=seed)
    write_pairs(pairs, out)
    first = sum(pair.ours_is_first for pair in pairs)
    if format is Format.json:
        print(json.dumps({"file": str(out), "num_pairs": len(pairs), "num_ours_first": first}))
        return
    print(f"wrote {out}: {len(pairs)} pairs, {pairs[0].ours_from} (first in {first}) against {pairs[0].theirs_from}")


@app.command(
    "ask",
    epilog="Examples:\n\n`potstill judge ask pairs.jsonl --url http://127.0.0.1:8000/v1 --model NAME --out a.jsonl`\n\n"
    "`potstill judge ask pairs.jsonl --url https://HOST/v1 --model NAME --api-key-env JUDGE_KEY --out a.jsonl`",
)
@stoppable()
def ask(
    pairs: PairsFile,
    url: Annotated[str, typer.Option(help="Of an OpenAI-compatible server, up to and with /v1.")],
    model: Annotated[str, typer.Option(help="The server's name of the judge.")],
    out: Annotated[Path, typer.Option(help="Where answers are kept; gone on with if it is there.")],
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Questions at a time.")] = 4,
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable with the key. Without it no key is sent.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one answer may take.")] = 120,
    attempts: Annotated[int, typer.Option(min=1, help="Of each question, where a failure may pass.")] = 5,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=JSON", help="Of the request, such as max_tokens=500; null leaves it out."),
    ] = None,
    format: FormatOption = Format.human,
) -> None:
    """Ask a server about every pair that has no answer yet."""
    from potstill.evaluation import judge
    from potstill.served.settings import settings_in

    told = judge.ask(
        [pair for _, pair in judge.read_pairs(pairs).values()],
        judge.endpoint_at(url, key_env=api_key_env, timeout=timeout),
        model,
        out,
        settings=settings_in(settings or [], "--model"),
        concurrency=concurrency,
        attempts=attempts,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if format is Format.json:
        print(json.dumps(vars(told) | {"file": str(out)}))
    else:
        print(
            f"{told.num_new} answers new, {told.num_kept} there before, {told.num_cut} of the new ones cut; see {out}"
        )
    if told.unanswered:
        name, why = next(iter(told.unanswered.items()))
        raise PotstillError(
            f"{len(told.unanswered)} pairs have no answer, among them {name!r}: {why}",
            "run the same command again, which asks about those alone; `score --allow-missing` goes without them",
        )


@app.command("score", epilog="Example:\n\n`potstill judge score pairs.jsonl answers.jsonl --format json`")
def score(
    pairs: PairsFile,
    answers: Annotated[
        Path, typer.Argument(metavar="ANSWERS.jsonl", help="Of `ask`, or lines of id and answer, or id, first, second.")
    ],
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Count pairs without an answer only.")] = False,
    format: FormatOption = Format.human,
) -> None:
    """Turn answers into figures: the papers' ratio of sums, means, wins, and what the place in the prompt is worth."""
    from potstill.evaluation import judge

    read = judge.read_pairs(pairs)
    found = judge.score(read, judge.read_answers(answers, read), allow_missing=allow_missing)
    if format is Format.json:
        print(json.dumps(found, indent=2))
        return
    halves = {
        f"{half}_{name}": value for half, told in found.pop("by_position").items() for name, value in told.items()
    }
    for name, value in (found | halves).items():
        print(f"{name:24} {_plainly(value)}")


def _plainly(value: Any) -> str:
    """A figure in one line, an interval in brackets."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        shown = [f"{one['model']} {one['served_model']}" if isinstance(one, dict) else str(one) for one in value[:8]]
        return ", ".join(shown) + (f" and {len(value) - 8} more" if len(value) > 8 else "") or "none"
    if not isinstance(value, dict):
        return "none" if value is None else str(value)
    middle = value.get("value", value.get("mean"))
    if middle is None:
        return "none"
    p = f", p {value['p']:.3g}" if "p" in value else ""
    return f"{middle:.4g} [{value['low']:.4g}, {value['high']:.4g}]{p}"
