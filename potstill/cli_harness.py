"""``potstill harness``: standard tasks, asked by lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from potstill.cli_options import Format, FormatOption, RemoteCode

EPILOG = (
    "Needs `pip install 'potstill[lm-eval]'`. Examples:\n\n"
    "`potstill harness first smollm2-135m-instruct --task hellaswag --task arc_easy --limit 200`\n\n"
    "`potstill harness models/small --task my_task --tasks-dir my-tasks --format json`\n\n"
    "`potstill harness first --task gsm8k --num-fewshot 5 --chat`"
)


def harness(
    models: Annotated[list[str], typer.Argument(metavar="MODEL|RUN...", help="Runs, folders, .gguf files or hub ids.")],
    task: Annotated[list[str], typer.Option(help="A task, group or tag of lm-eval, or of yours; may be repeated.")],
    tasks_dir: Annotated[Path | None, typer.Option(help="A folder of tasks of your own; their Python is run.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each task, from the first.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each; else the task's own.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Frame prompts with the model's chat template.")] = False,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("evaluations"),
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at a time.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    format: FormatOption = Format.human,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Ask models the standard tasks of lm-eval, or read what they answered before."""
    from potstill.evaluation.harness import evaluate_tasks
    from potstill.models.devices import device_named
    from potstill.reporting.harness import markdown
    from potstill.run_models import model_named

    results = evaluate_tasks(
        [model_named(model, allow_remote_code=allow_remote_code) for model in models],
        task,
        root=out,
        tasks_dir=tasks_dir,
        limit=limit,
        num_fewshot=num_fewshot,
        chat=chat,
        device=device_named(device),
        batch_size=batch_size,
        allow_remote_code=allow_remote_code,
    )
    if format is Format.json:
        found = [result.settings | {"scores": result.scores, "folder": str(result.folder)} for result in results]
        print(json.dumps(found, indent=2))
    else:
        print(markdown(results))
