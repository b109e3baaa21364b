"""Tasks of lm-eval as they stand on this machine: found by name, opened with their documents, known by content.

lm-eval is an extra, so it is imported when it is wanted and reached by name.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError, DataError, PotstillError

OLDEST = (0, 4, 13)  # what this was written and run against
SEED = 1234  # of numpy, torch and the shots; Python's own is 0. All as in lm-eval's own command
NEAR = 4  # names that are suggested


@dataclass(frozen=True)
class Task:
    """A task, a group or a tag under one name, as it will be asked.

    Args:
        name: as the user gave it. loaded: what lm-eval made of it: its tasks and groups, set to the wanted shots.
        about: what figures depend on: versions, hashes of config, documents and code, shots, counts.
    """

    name: str
    loaded: dict[str, Any]
    about: dict[str, Any]


def check_installed() -> str:
    """The version of lm-eval. Raises: ConfigError where there is none, or one too old."""
    fix = 'pip install "potstill[lm-eval]"'
    try:
        import_module("lm_eval")
    except ImportError as error:
        cause = "standard tasks are asked through lm-eval, which is not installed"
        if error.name not in (None, "lm_eval"):
            cause = f"lm-eval cannot be imported: {error}"
        raise ConfigError(cause, fix) from error
    version = metadata.version("lm_eval")
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < OLDEST:
        raise ConfigError(f"lm-eval is {version}, and {'.'.join(map(str, OLDEST))} or newer is needed", fix)
    return version


@contextmanager
def lm_eval_at_work(refuse: Callable[[Exception], PotstillError]) -> Iterator[None]:
    """Keep stdout free of what lm-eval prints (it goes to stderr), and turn what it raises into an error of ours."""
    with redirect_stdout(sys.stderr):
        try:
            yield
        except PotstillError:
            raise
        except Exception as error:
            raise refuse(error) from error


def open_tasks(
    names: Sequence[str], *, tasks_dir: Path | None = None, limit: int | None = None, num_fewshot: int | None = None
) -> list[Task]:
    """Find tasks and read their data, before any model is loaded.

    Args:
        names: of tasks, groups or tags.
        tasks_dir: a folder of tasks of the user's own (.yaml), which come before lm-eval's.
        limit: documents of each task, from the first; all where None.
        num_fewshot: examples before each question, but not for a task that itself says none; its own where None.
    Raises: ConfigError for an unknown name; DataError for a broken task file, or a task whose data is not here.
    """
    if tasks_dir is not None:
        _check_files(tasks_dir)
    manager = _manager(names, tasks_dir)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(f"there is no task {name!r}{_near(name, manager.all_tasks)}", _unknown_fix(tasks_dir))
    return [_opened(manager, name, tasks_dir, limit, num_fewshot) for name in dict.fromkeys(names)]


def set_seeds(loaded: dict[str, Any]) -> None:
    """What lm-eval's own command does before it asks: the same draws whatever was asked before."""
    import_module("random").seed(0)
    import_module("numpy").random.seed(SEED)
    import_module("torch").manual_seed(SEED)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=SEED)


def digest(content: Any) -> str:
    """SHA-256 of a JSON value; functions count by their source."""
    return sha256(json.dumps(content, sort_keys=True, default=_written_out).encode()).hexdigest()


def first_line(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _manager(names: Sequence[str], tasks_dir: Path | None) -> Any:
    """An index of tasks: of the user's own alone where they are all that is wanted, as lm-eval's takes many seconds."""
    index = import_module("lm_eval.tasks").TaskManager
    with lm_eval_at_work(lambda error: DataError(f"lm-eval cannot list its tasks: {first_line(error)}")):
        if tasks_dir is not None:
            own = index(include_path=str(tasks_dir), include_defaults=False)
            if all(name in own.all_subtasks for name in names):
                return own
        print("looking through lm-eval's tasks", file=sys.stderr, flush=True)
        return index(include_path=None if tasks_dir is None else str(tasks_dir))


def _check_files(folder: Path) -> None:
    """lm-eval passes over a task file that it cannot read; that would end as an unknown task. Raises: DataError."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder", "name the folder of your task files with --tasks-dir")
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise DataError(f"{folder}: no .yaml file in it", "a task is a .yaml file; its name is its field `task`")
    read = import_module("lm_eval.tasks._yaml_loader").load_yaml
    for file in files:
        try:
            read(file, resolve_func=False)
        except Exception as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{file}:{mark.line + 1}" if mark else str(file)
            told = getattr(error, "problem", None) or first_line(error)
            raise DataError(f"{where}: not a task file: {told}", "mend it, or take it out of the folder") from error


def _opened(manager: Any, name: str, tasks_dir: Path | None, limit: int | None, num_fewshot: int | None) -> Task:
    with lm_eval_at_work(lambda error: _refusal(name, error)):
        loaded = manager.load([name])
        for task in loaded["tasks"].values():
            _set_shots(task, num_fewshot)
        set_seeds(loaded)  # some tasks draw while they prepare their documents
        for member, task in loaded["tasks"].items():
            _check_can_be_asked(member, task)
        members = {member: _about(member, task, limit) for member, task in loaded["tasks"].items()}
        groups = {group: digest(one.to_dict()) for group, one in (loaded.get("groups") or {}).items()}
    about = {"members": members, "groups": groups, "own_code_sha256": _code_of(tasks_dir)}
    return Task(name, loaded, about)


def _set_shots(task: Any, wanted: int | None) -> None:
    own = task.get_config("num_fewshot")
    if wanted is not None and own != 0:
        task.set_config(key="num_fewshot", value=wanted)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


def _check_can_be_asked(name: str, task: Any) -> None:
    """Raises: ConfigError for tasks that would run what a model writes, or that are not of text."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"task {name} runs the code that a model writes, which is not done here", "leave it out")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"task {name} is not of text alone, and models are read as text models", "leave it out")


def _about(name: str, task: Any, limit: int | None) -> dict[str, Any]:
    """What one task's figures depend on: what it says of itself, its questions, and the examples before them."""
    documents = [document for _, document in task.doc_iterator(limit=limit)]
    if not documents:
        raise DataError(f"task {name} has no documents", "see that its test_split or validation_split is not empty")
    shots = int(task.get_config("num_fewshot") or 0)
    return {
        "version": task.VERSION,
        "config_sha256": digest(task.dump_config()),
        "num_documents": len(documents),
        "documents_sha256": digest(documents),
        "num_fewshot": shots,
        "fewshot_sha256": digest(list(task.fewshot_docs())) if shots else None,
    }


def _code_of(folder: Path | None) -> str | None:
    """The hash of Python in the user's folder: a task's functions call others that its config does not show."""
    files = sorted(folder.rglob("*.py")) if folder else []
    return digest([file.read_text(encoding="utf-8") for file in files]) if files else None


def _refusal(name: str, error: Exception) -> DataError:
    """A task that cannot be opened; by far most often its data is not on this machine."""
    if isinstance(error, ConnectionError) or type(error).__name__ == "DatasetNotFoundError":
        return DataError(
            f"task {name}: its data is not here and not reachable: {first_line(error)}",
            "run it once where there is a network (without HF_HUB_OFFLINE) and bring the Hugging Face cache (HF_HOME) "
            "along, or write the task about files of your own and name its folder with --tasks-dir",
        )
    return DataError(
        f"task {name} cannot be opened: {first_line(error)}",
        "see that the files and fields its .yaml names are there; paths are taken from the current folder",
    )


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=NEAR, cutoff=0.6)
    return f"; near are {', '.join(near)}" if near else ""


def _unknown_fix(tasks_dir: Path | None) -> str:
    where = f"; {tasks_dir} has been looked through" if tasks_dir else "; --tasks-dir names a folder of your own tasks"
    return f"`lm_eval ls tasks` lists lm-eval's{where}"


def _written_out(value: Any) -> Any:
    """What JSON has no words for: a function by its source, whatever else by its text."""
    if not callable(value):
        return str(value)
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
