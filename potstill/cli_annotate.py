"""``potstill annotate``: labels, rationales and responses for rows, by a teacher, kept with their origin."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli_options import Format, FormatOption, Framing, Layout, LayoutOption, RemoteCode
from potstill.errors import ConfigError, PotstillError
from potstill.served.stopping import stoppable

if TYPE_CHECKING:
    from potstill.annotation.task import Task
    from potstill.annotation.teachers import Teacher, Writing

EPILOG = (
    "Examples:\n\n"
    "`potstill annotate anli:r1_dev --teacher smollm2-135m-instruct --want rationale --given-label --out why.jsonl`\n\n"
    "`potstill annotate rows.jsonl --teacher models/big --want label --labels yes,no --out labels.jsonl`\n\n"
    "`potstill annotate svamp:train --teacher models/big --want rationale_and_label --shots shots.jsonl --samples 4 "
    "--temperature 0.7 --out thoughts.jsonl`\n\n"
    "`potstill annotate anli:r2_train --teacher models/flan-t5 --want rationale --given-label --only-missing "
    "--num-beams 3 --repetition-penalty 1.15 --min-new-tokens 20 --out why.jsonl`  reasons where people gave none\n\n"
    "`potstill annotate rows.jsonl --teacher NAME --url http://127.0.0.1:8000/v1 --want response --out said.jsonl`\n\n"
    "`potstill annotate rows.jsonl ... --review review.csv`, edit it, then `potstill annotate rows.jsonl ... --apply "
    "review.csv`; what was decided holds from then on"
)


class Want(StrEnum):
    """What a teacher is asked for."""

    label = "label"
    rationale = "rationale"
    rationale_and_label = "rationale_and_label"
    response = "response"


class Choose(StrEnum):
    """How a label is found among those there are."""

    likelihood = "likelihood"
    parse = "parse"


@stoppable()
def annotate(
    rows: Annotated[str, typer.Argument(help='A .jsonl, .csv or .parquet file, or a split as "anli:r1_dev".')],
    teacher: Annotated[str, typer.Option(help="A run, folder, .gguf file or hub id; with --url the server's name.")],
    want: Annotated[Want, typer.Option(help="What it is asked for.")],
    out: Annotated[Path, typer.Option(help="A .jsonl file; gone on with if this command has begun it.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[data.KEY=VALUE]...", help="How a file's rows are read.")
    ] = None,
    given_label: Annotated[
        bool, typer.Option("--given-label", help="Show the gold label, to be explained; else it is not seen.")
    ] = False,
    only_missing: Annotated[
        bool, typer.Option("--only-missing", help="Keep what people have written, and ask for the rest.")
    ] = False,
    labels: Annotated[
        str | None, typer.Option(help="What a label is one of, with commas; else the row's options.")
    ] = None,
    choose: Annotated[
        Choose, typer.Option(help="The likeliest label, or the one that is written.")
    ] = Choose.likelihood,
    template: Annotated[Path | None, typer.Option(help="A text file with {prompt}; else the built-in one.")] = None,
    shots: Annotated[Path | None, typer.Option(help="Worked examples, .jsonl; rows among them are not asked.")] = None,
    mark: Annotated[str | None, typer.Option(help='Between rationale and label; else "So the answer is".')] = None,
    samples: Annotated[int, typer.Option(min=1, help="Annotations of each row.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="Of the draws; 0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of the likeliest tokens drawn from.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Where a text is cut; else by what is wanted.")
    ] = None,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="Before the end may be written.")] = 0,
    num_beams: Annotated[int, typer.Option(min=1, help="Of a beam search.")] = 1,
    repetition_penalty: Annotated[float, typer.Option(help="Over 1: tokens that were written are less likely.")] = 1.0,
    framing: Annotated[Framing, typer.Option(help="auto: the chat template where there is one.")] = Framing.auto,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows, from the first.")] = None,
    filters: Annotated[str | None, typer.Option(help='Names with commas, in order, or "none"; else by --want.')] = None,
    blacklist: Annotated[str | None, typer.Option(help="Words with commas, in place of the usual ones.")] = None,
    review: Annotated[Path | None, typer.Option(help="Write a .csv or .jsonl for a person to decide in.")] = None,
    apply: Annotated[Path | None, typer.Option(help="Take over what a person decided in such a file.")] = None,
    url: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible server, up to and with /v1.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="The environment variable with the server's key.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Questions to a server at a time.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one answer of a server may take.")] = 120,
    request: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=JSON", help="Of a server's request; null leaves one out.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at a time.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    data_format: LayoutOption = Layout.prompt_response,
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Have a teacher write labels, rationales or responses for rows, once, to train on.

    The same command goes on where it was stopped. Filters are applied to what was written: other --filters ask nothing.
    """
    from potstill.annotation import Job
    from potstill.annotation import annotate as run
    from potstill.annotation.beams import Search
    from potstill.annotation.filters import steps_of
    from potstill.annotation.rows import read_items
    from potstill.annotation.summary import summary
    from potstill.annotation.teachers import NEW_TOKENS, Writing

    task = _task(want, given_label, labels, choose, template, shots, mark)
    search = Search(
        max_new_tokens=NEW_TOKENS[want.value] if max_new_tokens is None else max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        num_beams=num_beams,
        repetition_penalty=repetition_penalty,
        min_new_tokens=min_new_tokens,
    )
    writing = Writing(search, framing.value)
    steps = steps_of(_names(filters), task, None if blacklist is None else _listed(blacklist))
    if url is None:
        asked = _local(teacher, writing, device, batch_size, allow_remote_code, api_key_env, request)
    else:
        asked = _served(teacher, writing, url, api_key_env, timeout, concurrency, request)
    job = Job(
        rows=read_items(_data(rows, data_format, settings or []), task),
        task=task,
        teacher=asked.settings,
        out=out,
        samples=samples,
        seed=seed,
        limit=limit,
        only_missing=only_missing,
        steps=steps,
        review=review,
        apply=apply,
    )
    done = run(job, asked.open, say=_say)
    print(json.dumps(done.card, indent=2) if format is Format.json else summary(done.card, out, review))
    if done.unanswered:
        name, why = next(iter(done.unanswered.items()))
        raise PotstillError(
            f"{len(done.unanswered)} questions have no answer, among them {name}: {why}",
            "run the same command again, which asks those alone",
        )


def _task(
    want: Want,
    given_label: bool,
    labels: str | None,
    choose: Choose,
    template: Path | None,
    shots: Path | None,
    mark: str | None,
) -> Task:
    from potstill.annotation.task import MARK, Task
    from potstill.annotation.templates import read_shots, read_template

    return Task(
        want=want.value,
        given_label=given_label,
        labels=() if labels is None else tuple(_listed(labels)),
        choose=choose.value,
        mark=MARK if mark is None else mark,
        template=None if template is None else read_template(template),
        shots=() if shots is None else read_shots(shots, want.value, given_label),
    )


def _local(
    name: str,
    writing: Writing,
    device: str,
    batch_size: int,
    allow_remote_code: bool,
    api_key_env: str | None,
    request: list[str] | None,
) -> Teacher:
    from potstill.annotation.teachers import local_teacher
    from potstill.models.devices import device_named
    from potstill.run_models import model_named

    if given := "--api-key-env" if api_key_env else "--set" if request else None:
        raise ConfigError(f"{given} is for a server, and no --url is given", "leave it out, or add --url")
    path = model_named(name, allow_remote_code=allow_remote_code)
    place = device_named(device)
    return local_teacher(name, path, writing, device=place, batch_size=batch_size, allow_remote_code=allow_remote_code)


def _served(
    name: str,
    writing: Writing,
    url: str,
    api_key_env: str | None,
    timeout: float,
    concurrency: int,
    request: list[str] | None,
) -> Teacher:
    from potstill.annotation.teachers import served_teacher
    from potstill.served.endpoint import endpoint_at
    from potstill.served.settings import settings_in

    endpoint = endpoint_at(url, key_env=api_key_env, timeout=timeout)
    own = settings_in(request or [], "--teacher")
    return served_teacher(name, endpoint, writing, settings=own, concurrency=concurrency, say=_say)


def _data(rows: str, layout: Layout, settings: list[str]) -> Any:
    """How rows are read: of any recipe, so that its settings are named and checked as everywhere."""
    from potstill.recipe_io import load, parse_overrides
    from potstill.recipes import METHODS

    for setting in settings:
        if not setting.startswith("data.") or setting.startswith(("data.path=", "data.heldout=")):
            raise ConfigError(
                f"{setting!r} does not say how rows are read", "settings are written as data.fields.prompt=question"
            )
    named = {"data.path": rows, "data.format": layout.value}
    return load("sft", named | parse_overrides(settings), methods=METHODS).stage.data


def _names(filters: str | None) -> list[str] | None:
    if filters is None:
        return None
    names = _listed(filters)
    if "none" not in names:
        return names
    if len(names) > 1:
        rest = ",".join(name for name in names if name != "none")
        raise ConfigError(f"--filters is {filters}, and none stands alone", f"use --filters none, or --filters {rest}")
    return []


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
