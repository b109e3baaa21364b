"""The run folder: where everything a run makes lies, and the only code that knows the names.

runs/<name>/
  recipe.yaml      resolved, re-runnable        env.json      versions, device, threads
  data.json        counts, overlap              quarantine.jsonl   rows that could not be used, and why
  metrics.jsonl    one line a step              samples.jsonl      outputs side by side
  checkpoints/     step-000200/{student/, state/, MANIFEST.json}  best -> step-...
  student/         the result: a loadable model folder with its card
  eval/            teacher.json student_before.json student_after.json equal_time_sft.json
                   and beside each .rows.jsonl: what was measured of each held-out row
  panel/           the same names: what each model is like on its own samples
  teacher_text/    what the teacher wrote to the training prompts, where a stream asks for it
  replayed/        while training: what the teacher said of a replay buffer, where its words are kept
  baseline/        the equal-time student: the same again inside
  stages/          of a recipe with several: 1-<name>/ 2-<name>/, each a run folder; then there stand beside it only
                   recipe.yaml, stages.json, report.html and student -> that of the stage that makes the result
  cost.json        seconds, tokens, memory      report.html
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from psutil import pid_exists

from potstill.errors import ConfigError, DataError

RUNS = Path("runs")
LATEST = "latest"
LOCK = ".lock"
STAGES = "stages"
MODELS = ("teacher", "student_before", "student_after", "equal_time_sft")  # rows of the table, in order
# What a user calls them, as in first:untouched.
PARTS = {"teacher": "teacher", "untouched": "student_before", "student": "student_after", "sft": "equal_time_sft"}


@dataclass(frozen=True)
class Run:
    """A run folder. ``called``: what it is shown as, where that is not its own name."""

    path: Path
    called: str | None = None

    @property
    def name(self) -> str:
        """What a user calls it: of a stage, with the run that it is of, as in first/stages/1-warm-up."""
        folder = self.path.resolve()
        own = folder.name if folder.parent.name != STAGES else f"{folder.parents[1].name}/{STAGES}/{folder.name}"
        return self.called or own

    @property
    def stages(self) -> list[Run]:
        """The runs of its stages, begun or not; none where it is of one stage and that stage's run itself."""
        return [Run(self.path / stage["folder"]) for stage in self.read("stages") or ()]

    @property
    def result(self) -> Run:
        """The run that made the student: itself, or the stage of it that makes its result, under its own name."""
        planned = self.read("stages")
        if not planned:
            return self
        chosen = next((stage for stage in planned if stage.get("is_result")), planned[-1])
        return Run(self.path / chosen["folder"], called=self.name)

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples_file(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def quarantine_file(self) -> Path:
        return self.path / "quarantine.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def adapter(self) -> Path:
        """What was trained of a student that has an adapter, in peft's format."""
        return self.path / "adapter"

    @property
    def untouched(self) -> Path:
        """The student before training, where it is no model of a name."""
        return self.path / "untouched"

    @property
    def baseline(self) -> Run:
        return Run(self.path / "baseline")

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    def eval_file(self, model: str) -> Path:
        return self.path / "eval" / f"{model}.json"

    def rows_file(self, model: str) -> Path:
        return self.path / "eval" / f"{model}.rows.jsonl"

    def rows(self, model: str) -> list[dict[str, Any]]:
        """What was measured of each held-out row: its text, what the model answered, its scores."""
        return list(read_jsonl(self.rows_file(model)))

    def read(self, name: str) -> Any:
        """The content of ``<name>.json``, or an empty dict where the run has not come that far."""
        file = self.path / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def glance(self, name: str) -> dict[str, Any]:
        """The same of a run that is only looked at in passing: what is damaged there counts as not there."""
        file = self.path / f"{name}.json"
        return (json_object(file.read_bytes()) or {}) if file.is_file() else {}

    def write(self, name: str, content: Any) -> None:
        write_text(self.path / f"{name}.json", json.dumps(content, indent=2) + "\n")

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """What was measured of each model, in the order of the table; models not measured are absent."""
        found = {model: self.read(f"eval/{model}") for model in MODELS}
        return {model: measured for model, measured in found.items() if measured}

    def teacher_texts(self) -> dict[str, Any]:
        """What the teacher wrote to train on, by stream: its cards, without the text."""
        folders = sorted((self.path / "teacher_text").glob("*/card.json"))
        return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in folders}

    def metrics(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.metrics_file))

    def samples(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.samples_file))


def create(name: str | None, method: str, root: Path = RUNS) -> Run:
    """A new run folder; ``<method>-<n>`` where no name is given. Never one in which anything was trained.

    Raises: ConfigError for a name that is taken, and where a file stands in the folder's way.
    """
    make_folder(root)
    if name == LATEST:
        raise ConfigError(f"a run cannot be called {LATEST}: that is the link to the newest one", "choose another name")
    for candidate in [name] if name else _numbered(method, root):
        folder = root / candidate
        try:
            folder.mkdir()
        except FileExistsError:
            # A run refused before its first step (its data was broken, say) holds nothing and keeps no name.
            if not name or has_trained(folder) or not folder.is_dir():
                continue
        return Run(folder)
    if not (taken := root / str(name)).is_dir():
        raise ConfigError(f"{taken} is there already, and is no run", "choose another name with run=NAME, or move it")
    raise ConfigError(
        f"runs/{name} exists already, and a run is never overwritten",
        f"continue it with `potstill resume {name}`, or choose another name with run=NAME",
    )


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where it is not there yet.

    Raises: ConfigError where something else of that name is in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        taken = next(
            path for path in (*reversed(folder.parents), folder) if os.path.lexists(path) and not path.is_dir()
        )
        raise ConfigError(
            f"{taken} is not a folder, and one of that name is needed here", "move or rename it, or work elsewhere"
        ) from None


def has_trained(folder: Path) -> bool:
    """Whether anything was trained in a run folder, or in one of its stages."""
    return any((place / "metrics.jsonl").exists() for place in (folder, *(folder / STAGES).glob("*")))


def _numbered(method: str, root: Path) -> Iterator[str]:
    taken = [int(m[1]) for p in root.iterdir() if (m := re.fullmatch(rf"{re.escape(method)}-(\d+)", p.name))]
    number = max(taken, default=0)
    while True:
        number += 1
        yield f"{method}-{number}"


def clear(run: Run) -> None:
    """Empty a new run's folder of what a run left that was refused or stopped before its first step.

    Raises: ConfigError where another process has trained in it meanwhile.
    """
    if has_trained(run.path):
        raise ConfigError(
            f"{run.path} has been taken by another command meanwhile", "choose another name with run=NAME"
        )
    for item in run.path.iterdir():
        if item.is_dir() and not item.is_symlink():
            remove_folder(item)
        elif item.name != LOCK:
            item.unlink()


def find(name_or_path: str | Path, root: Path = RUNS) -> Run:
    """The run called ``name_or_path``: a name under ``runs/`` or a path."""
    for path in (root / name_or_path, Path(name_or_path)):
        if (path / "recipe.yaml").is_file():
            return Run(path)
    there = [p for p in root.iterdir() if not p.is_symlink()] if root.is_dir() else []
    names = sorted(p.name for p in there if (p / "recipe.yaml").is_file())
    known = (
        f"runs here: {', '.join(names)}" if names else "there are no runs here yet; start one with `potstill train kd`"
    )
    raise ConfigError(f"{name_or_path} is not a run", known)


def mark_latest(run: Run) -> str | None:
    """Point ``runs/latest`` at this run, and return what it pointed at before."""
    link = run.path.parent / LATEST
    before = os.readlink(link) if link.is_symlink() else None
    replace_link(link, run.path.name)
    return before


def discard(run: Run, latest: str | None) -> None:
    """Remove a run that was refused before anything was made that is worth keeping, and point ``latest`` back.

    Kept are what the teacher wrote, and the rows that a message sends the user to.
    """
    kept = ("metrics.jsonl", "teacher_text", "quarantine.jsonl")
    if any((place / name).exists() for place in (run.path, *(run.path / STAGES).glob("*")) for name in kept):
        return
    remove_folder(run.path)
    if latest is None:
        (run.path.parent / LATEST).unlink(missing_ok=True)
    else:
        replace_link(run.path.parent / LATEST, latest)


def replace_link(link: Path, target: str) -> None:
    """Make ``link`` point at ``target`` in one step, so that it is never missing."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def write_text(file: Path, text: str) -> None:
    """Write a whole file or nothing: a reader never sees half of it, and a crash leaves the old one.

    What a process of this machine that is gone had begun to write of the same file is removed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    mine = f".{file.name}.{platform.node()}."  # a process number says nothing about another machine's processes
    for left in file.parent.glob(f"{escape(mine)}*"):
        pid = left.name.removeprefix(mine)
        if re.fullmatch(r"\d{1,9}", pid) and not pid_exists(int(pid)):
            with suppress(OSError):  # another user's
                left.unlink()
    temporary = file.with_name(f"{mine}{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a .jsonl file that this package wrote; a last line cut by a crash is passed over.

    Raises: DataError for a line that something else has damaged.
    """
    if not file.exists():
        return
    with open(file, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.endswith(b"\n"):
                return
            if (found := json_object(line)) is None:
                raise DataError(f"{file}:{number}: not a JSON object", "put the line right, or take it out")
            yield found


def json_object(text: bytes) -> dict[str, Any] | None:
    """The JSON object that this is, in UTF-8; None where it is none."""
    try:
        found = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def remove_folder(folder: Path) -> None:
    """Remove a folder of our own, never what a link inside it points to."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
