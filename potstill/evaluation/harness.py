"""Standard tasks of EleutherAI's lm-evaluation-harness, on models that are loaded as everywhere else here.

evaluations/harness-<key>/
  settings.json   what the figures depend on: model, task, documents, shots, lm-eval's version
  rows.jsonl      a line for each document: input, references, what the model said of it, scores
  scores.json     figures with lm-eval's standard errors, written last
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from potstill.errors import ConfigError, ModelError
from potstill.evaluation.harness_rows import Row, figures_of, rows_of
from potstill.evaluation.harness_tasks import (
    SEED,
    Task,
    check_installed,
    digest,
    first_line,
    lm_eval_at_work,
    open_tasks,
    set_seeds,
)
from potstill.evaluation.suites.kept import alone
from potstill.models.fingerprint import fingerprint_of
from potstill.models.loading import load
from potstill.run import read_jsonl, write_text

# Draws of the standard errors that have no closed form (perplexity, F1, ...). lm-eval's own command takes 100 000,
# which is minutes on a large task; 1000 are within some per cent.
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Settings:
    """How models are asked. ``limit``, ``num_fewshot``: see ``open_tasks``. ``chat``: with the chat template around it,
    shots as turns; lm-eval's published figures are without."""

    limit: int | None = None
    num_fewshot: int | None = None
    chat: bool = False
    bootstraps: int = BOOTSTRAPS
    seed: int = SEED


@dataclass(frozen=True)
class HarnessResult:
    """A model's figures on a task, and where its rows are."""

    folder: Path
    settings: dict[str, Any]
    scores: dict[str, Any]

    @property
    def model(self) -> str:
        return str(self.settings["model"]["name"])

    @property
    def task(self) -> str:
        return str(self.settings["task"])

    @property
    def rows(self) -> list[Row]:
        return list(read_jsonl(self.folder / "rows.jsonl"))


def evaluate_tasks(
    names: Sequence[str],
    tasks: Sequence[str],
    *,
    root: Path,
    tasks_dir: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    allow_remote_code: bool = False,
) -> list[HarnessResult]:
    """Every model on every task, each model loaded once and only if one of its results is not there yet.

    Args:
        names: embedded names, folders, .gguf files or hub ids.
        tasks: names of lm-eval's tasks, groups and tags, or of the user's own.
        root: where results are kept.
        tasks_dir: a folder of the user's own tasks. Python that they name is run.
        limit: documents of each task, from the first. num_fewshot: examples before each; the task's own where None.
        chat: frame prompts with the model's chat template.
        device: of the models. batch_size: texts at a time. allow_remote_code: run Python that comes with a model.
    Returns: results, model by model, in the order of the tasks.
    Raises: ConfigError where lm-eval is not installed or has no such task; DataError where a task's data is not here;
        ModelError.
    """
    version = check_installed()
    settings = Settings(limit, num_fewshot, chat)
    opened = open_tasks(tasks, tasks_dir=tasks_dir, limit=limit, num_fewshot=num_fewshot)
    found = []
    for name in names:
        identity = {"name": name, "fingerprint": fingerprint_of(name)}
        options = {"device": device, "allow_remote_code": allow_remote_code}
        model = cache(partial(_open_model, name, chat=chat, batch_size=batch_size, options=options))
        for task in opened:
            told = describe(identity, task, settings, version)
            found.append(_kept(told, root, partial(_asked, model, task, settings, name)))
        model.cache_clear()
    return found


def describe(identity: Mapping[str, str], task: Task, settings: Settings, version: str) -> dict[str, Any]:
    """What a result depends on, and nothing else."""
    return {
        "model": dict(identity),
        "task": task.name,
        **task.about,
        "settings": asdict(settings),
        "lm_eval": version,
    }


def key_of(told: Mapping[str, Any]) -> str:
    """The name a result is kept under: of what it depends on, but not of what the model was called."""
    return digest(dict(told) | {"model": told["model"]["fingerprint"]})


def _kept(told: dict[str, Any], root: Path, ask: Callable[[], tuple[list[Row], dict[str, Any]]]) -> HarnessResult:
    """The result of these settings from the disk, or asked for now: each file is whole or not there."""
    folder = root / f"harness-{key_of(told)[:16]}"
    file = folder / "scores.json"
    with alone(folder, f"{told['task']}: {told['model']['name']}"):
        if not file.exists():
            rows, scores = ask()
            write_text(folder / "settings.json", json.dumps(told, indent=2) + "\n")
            write_text(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            write_text(file, json.dumps(scores, indent=2) + "\n")
    print(f"{told['task']}: {told['model']['name']} done, {folder}", file=sys.stderr, flush=True)
    return HarnessResult(folder, told, json.loads(file.read_text(encoding="utf-8")))


def _asked(model: Callable[[], Any], task: Task, settings: Settings, name: str) -> tuple[list[Row], dict[str, Any]]:
    """Rows and figures of a task, from lm-eval."""
    asked = model()
    begun = time.perf_counter()
    with lm_eval_at_work(lambda error: _refusal(task.name, name, error)):
        set_seeds(task.loaded)
        found = import_module("lm_eval.evaluator").evaluate(
            lm=asked,
            task_dict=task.loaded,
            limit=settings.limit,
            bootstrap_iters=settings.bootstraps,
            log_samples=True,
            apply_chat_template=settings.chat,
            fewshot_as_multiturn=settings.chat,
        )
    rows = [row for part, samples in found["samples"].items() for row in rows_of(part, samples)]
    scores = {
        "figures": figures_of(found["results"]),
        "less_is_better": _less_is_better(found["higher_is_better"]),
        "num_rows": len(rows),
        "seconds": round(time.perf_counter() - begun, 2),
    }
    return rows, scores


def _open_model(name: str, *, chat: bool, batch_size: int, options: dict[str, Any]) -> Any:
    """A model loaded by our own loading, in the form in which lm-eval asks it."""
    loaded = load(name, **options)
    if chat and not loaded.tokenizer.chat_template:
        raise ConfigError(f"{name}: its tokenizer has no chat template", "leave --chat out")
    with lm_eval_at_work(lambda error: ModelError(f"{name}: lm-eval cannot use it: {first_line(error)}")):
        wrapper = import_module("lm_eval.models.huggingface").HFLM
        with _without_advice():
            return wrapper(pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=batch_size)


@contextmanager
def _without_advice() -> Iterator[None]:
    """lm-eval warns of every model that it has not loaded itself; that is what is wanted here."""
    logger = logging.getLogger("lm_eval.models.huggingface")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _refusal(task: str, model: str, error: Exception) -> ModelError:
    return ModelError(
        f"task {task}, asked of {model}: lm-eval stopped with {first_line(error)}",
        "see that what is asked and written fits the model's positions, and what lm-eval says above",
    )


def _less_is_better(known: Mapping[str, Mapping[str, bool | None]]) -> list[str]:
    return sorted({metric for of_part in known.values() for metric, higher in of_part.items() if higher is False})
