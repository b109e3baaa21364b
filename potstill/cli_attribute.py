"""``potstill attribute``: which channels of a teacher matter for a task, chosen once and kept in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli_options import Format, FormatOption, Framing, FramingOption, Layout, LayoutOption, RemoteCode

EPILOG = (
    "Examples:\n\n"
    "`potstill attribute smollm2-135m-instruct --data starter --keep 192 --out channels.json`\n\n"
    "`potstill attribute models/big --data rows.jsonl --layers all --place mlp --keep 512 --out inner.json`\n\n"
    "`potstill attribute first:teacher --data dolly:valid --measure random --keep 192 --out control.json --limit 256`"
)


class Place(StrEnum):
    """Where in a layer."""

    residual = "residual"
    mlp = "mlp"


class Measure(StrEnum):
    """By what a channel is scored."""

    grad_activation = "grad_activation"
    integrated_gradients = "integrated_gradients"
    mean_activation = "mean_activation"
    logit_lens = "logit_lens"
    random = "random"


def attribute(
    model: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="A run, a folder, a .gguf file or a hub id.")],
    data: Annotated[str, typer.Option(help='Rows of the task: a file, a split as "dolly:valid", or "starter".')],
    keep: Annotated[int, typer.Option(min=1, help="Channels of each layer: as many as the student has there.")],
    out: Annotated[Path, typer.Option(help="The file; what is in it already is read, never overwritten.")],
    layers: Annotated[str, typer.Option(help="Of the decoder, from 0: last-3, all, or 0,5,9.")] = "last-3",
    place: Annotated[
        Place, typer.Option(help="residual: what leaves a layer. mlp: its inner channels.")
    ] = Place.residual,
    measure: Annotated[Measure, typer.Option(help="By what channels are scored.")] = Measure.grad_activation,
    limit: Annotated[int, typer.Option(min=1, help="Rows used, from the first.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Of integrated_gradients.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of random channels, and of the halves that are compared.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 8,
    data_format: LayoutOption = Layout.prompt_response,
    template: FramingOption = Framing.auto,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Choose the channels of a teacher's layers that matter most for a task, and say how sure that choice is."""
    from potstill import api

    there = out.exists()
    selection = api.attribute(
        model,
        data=data,
        keep=keep,
        out=out,
        layers=layers,
        place=place.value,
        measure=measure.value,
        steps=steps,
        seed=seed,
        limit=limit,
        batch_size=batch_size,
        device=device,
        watch=_bar,
        allow_remote_code=allow_remote_code,
        **{"data.format": data_format.value, "data.template": template.value},
    )
    if format is Format.json:
        print(selection.model_dump_json(indent=2))
    else:
        print("\n".join([*_told(selection), f"{'read from' if there else 'wrote'} {out}"]))


def _bar(batches: Sequence[Any]) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    quiet = not sys.stderr.isatty()
    return track(batches, "scoring channels", console=Console(stderr=True), disable=quiet, transient=True)


def _told(selection: Any) -> list[str]:
    """A line for each layer, and what the overlaps compare."""
    wanted, stability = selection.wanted, selection.stability
    rows = f"{selection.rows.rows} rows with {selection.rows.response_tokens} response tokens"
    lines = [
        f"{wanted.count} of {selection.width} {wanted.place} channels by {wanted.measure}, on {rows}",
        f"{'layer':>5}  {'lowest':>9}  {'median':>9}  {'highest':>9}  {'selected share':>14}  {'overlap':>7}",
    ]
    overlaps = [f"{one:7.3f}" for one in stability.by_layer] if stability else ["-"] * len(selection.layers)
    for layer, one, overlap in zip(selection.layers, selection.scores, overlaps, strict=True):
        spread = f"{one.lowest:9.3g}  {one.median:9.3g}  {one.highest:9.3g}  {one.selected_share:14.1%}"
        lines.append(f"{layer:5}  {spread}  {overlap:>7}")
    if not stability:
        return [*lines, "how stable this is cannot be said of one row"]
    compared = f"{stability.between}, {stability.comparisons} times" if stability.comparisons > 1 else stability.between
    told = f"mean {stability.mean:.3f}, lowest {stability.lowest:.3f}; by chance {stability.chance:.3f}"
    return [*lines, f"overlap of the choices from two {compared}: {told}"]
