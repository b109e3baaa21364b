"""How seconds and memory grow: of a training step, of reading rows, of a cache, and over ten thousand steps.

    python bench/scaling.py                                       everything, about ten minutes
    python bench/scaling.py --only vocabulary rows --repeats 5
    python bench/scaling.py --write docs/explanation/scaling.md   and the tables of that page

One thread; processor seconds, medians; each point in a process of its own. Memory is what a process had at its peak
above what it had with its models loaded: gradients, the optimizer's state, what forwards keep, logits. The step is
``train_step`` on the streams of ``kd``, as a run builds them, on random LLaMAs. An exponent is the slope of a straight
line through the points, both axes logarithmic: 1 is linear, less is what does not depend on the size beside what does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "scaling.json"
BEGIN, END = "<!-- scaling:begin -->", "<!-- scaling:end -->"
LINEAR = 1.1  # exponents up to this count as linear
PROMPT = 16  # tokens
MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """A step that is measured. ``teacher_layers`` and ``teacher_width`` are the teacher's size."""

    vocab: int = 32_000
    response: int = 128
    batch: int = 4
    teacher_layers: int = 4
    teacher_width: int = 192


@dataclass(frozen=True)
class Axis:
    """What is varied, and what else changes with it."""

    title: str
    unit: str
    values: tuple[int, ...]
    setting: Callable[[int], Setting]


TEACHERS = {2: 128, 4: 192, 6: 320, 8: 512}  # layers: width
AXES = {
    "vocabulary": Axis("Vocabulary", "tokens", (8_192, 16_384, 32_000, 49_152, 151_936), lambda n: Setting(vocab=n)),
    "response": Axis("Response length", "tokens", (64, 128, 256, 512, 1024), lambda n: Setting(response=n, batch=2)),
    "batch": Axis("Batch", "sequences", (1, 2, 4, 8, 16, 32), lambda n: Setting(batch=n, response=64)),
    "teacher": Axis(
        "Teacher", "parameters", tuple(TEACHERS), lambda n: Setting(teacher_layers=n, teacher_width=TEACHERS[n])
    ),
}
ROWS = (1_000, 10_000, 100_000, 1_000_000)
STEPS = (100, 1_000, 10_000)


# --- A step -----------------------------------------------------------------------------------------------------------


def llama(vocab: int, width: int, layers: int, positions: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    from potstill.models.families import family_of

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=positions, tie_word_embeddings=True,
    )  # fmt: skip
    return family_of(LlamaForCausalLM(config).eval())


def rows_of(count: int, response: int, vocab: int) -> list[Any]:
    from potstill.data.examples import Tokenised

    drawn = torch.randint(vocab, (count, PROMPT + response), generator=torch.Generator().manual_seed(0)).tolist()
    return [
        Tokenised(f"row:{at}", tuple(ids[:PROMPT]), tuple(ids[PROMPT:]), "", "", truncated=False)
        for at, ids in enumerate(drawn)
    ]


def kd_stage(batch: int, **settings: Any) -> Any:
    from potstill import recipe_io
    from potstill.recipes import METHODS

    return recipe_io.load("kd", {"batch": batch, **settings}, methods=METHODS).stage


def streams_of(stage: Any, rows: Sequence[Any], teacher: Any) -> list[Any]:
    """The stream of ``kd`` on given rows, as ``potstill.streams`` makes it."""
    from potstill.sources.dataset import DatasetSource
    from potstill.teachers.local import LocalTeacher
    from potstill.training.step import LiveStream
    from potstill.training.terms import LiveTerm

    (spec,) = stage.streams
    terms = tuple(LiveTerm(spec.name, term) for term in spec.terms)
    return [LiveStream(spec, DatasetSource(rows, seed=1, pad_id=0), LocalTeacher(teacher), terms)]


def one_step(setting: Setting, repeats: int) -> dict[str, float]:
    """Processor seconds of a step, MiB above the models, and the teacher's parameters."""
    from potstill.training import optim
    from potstill.training.runtime import start
    from potstill.training.step import train_step
    from potstill.training.trainer import training

    stage, runtime = kd_stage(setting.batch), start("cpu", "float32")
    positions = PROMPT + setting.response
    student = llama(setting.vocab, 192, 2, positions)
    teacher = llama(setting.vocab, setting.teacher_width, setting.teacher_layers, positions)
    streams = streams_of(stage, rows_of(64, setting.response, setting.vocab), teacher)
    optimizer = optim.build(student, stage.optimizer)
    before, seconds = forget_peak(), []
    with training(student):
        for _ in range(1 + repeats):
            begun = time.process_time()
            train_step(student, student, optimizer, streams, stage.batch, 1.0, runtime, 0.5)
            seconds.append(time.process_time() - begun)
    parameters = sum(p.numel() for p in teacher.parameters())
    return {"seconds": median(seconds[1:]), "mib": resident("VmHWM") - before, "teacher_parameters": parameters}


# --- Rows -------------------------------------------------------------------------------------------------------------


def written_rows(count: int) -> Iterator[dict[str, str]]:
    """Rows of eight words and eight more, drawn from 5,000: no two have runs of words in common but by chance."""
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(5000)]
    for _ in range(count):
        yield {"prompt": " ".join(drawn.choices(words, k=8)), "response": " ".join(drawn.choices(words, k=8))}


def loader(count: int) -> dict[str, float]:
    """Reading, tokenising and splitting rows of a file, and then drawing batches of eight from them."""
    from potstill.data.prepare import prepare
    from potstill.models.loading import load_tokenizer
    from potstill.recipe import Data
    from potstill.sources.dataset import DatasetSource
    from potstill.sources.source import Share

    tokenizer = load_tokenizer("smollm2-135m-instruct")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        with file.open("w", encoding="utf-8") as handle:
            handle.writelines(json.dumps(row) + "\n" for row in written_rows(count))
        before, begun = forget_peak(), time.process_time()
        data = prepare(Data(path=str(file), template="none"), tokenizer)
        seconds = time.process_time() - begun
    source, share, drawn = DatasetSource(data.train, seed=1, pad_id=0), Share(8, 8), []
    for _ in range(1000):
        begun = time.process_time()
        source.next(share)
        drawn.append(time.process_time() - begun)
    return {
        "seconds": seconds,
        "rows_per_s": count / seconds,
        "mib": resident("VmHWM") - before,
        "first_draw_ms": 1000 * drawn[0],
        "draw_ms": 1000 * median(drawn),
    }


# --- A cache ----------------------------------------------------------------------------------------------------------


def cached(count: int) -> dict[str, float]:
    """Writing rows of 50 draws at 16 tokens into a teacher's cache, opening it again, and reading batches of eight."""
    from hashlib import blake2b

    from potstill.teachers.cache.forms import DrawsForm
    from potstill.teachers.cache.store import Store, new_writer
    from potstill.types import Sampled

    vocab = 49_152
    form = DrawsForm(draws=50, temperature=1.0, vocab_size=vocab, seed=0)
    told = Sampled(torch.arange(10).expand(PROMPT, 10) * 4_096, torch.full((PROMPT, 10), 5 / 50))
    row = form.pack(told)
    digests = [blake2b(at.to_bytes(8, "little"), digest_size=16).digest() for at in range(count)]
    batches = [random.Random(at).choices(digests, k=8) for at in range(1000)]
    with tempfile.TemporaryDirectory() as folder:
        before, begun = forget_peak(), time.process_time()
        store = Store(Path(folder), {}, new_writer())
        for digest in digests:
            store.add(digest, row, positions=PROMPT, seconds=0.0)
        store.close()
        written = time.process_time() - begun
        begun = time.process_time()
        store = Store(Path(folder), {}, new_writer())
        opened, seconds = time.process_time() - begun, []
        for wanted in batches:
            begun = time.process_time()
            rows = [found for digest in wanted if (found := store.read(digest)) is not None]
            form.unpack(rows, [PROMPT] * len(rows))
            seconds.append(time.process_time() - begun)
            assert len(rows) == len(wanted)
        return {
            "seconds": written,
            "rows_per_s": count / written,
            "mib": resident("VmHWM") - before,
            "open_ms": 1000 * opened,
            "read_ms": 1000 * median(seconds),
        }


# --- Many steps -------------------------------------------------------------------------------------------------------


def many_steps() -> dict[str, dict[str, float]]:
    """Resident memory and open files at some steps of a run of the real trainer, on a tiny model."""
    from potstill.models.loading import load_tokenizer
    from potstill.run import Run
    from potstill.teachers.local import LocalTeacher
    from potstill.training.runtime import start
    from potstill.training.signals import StopRequest
    from potstill.training.trainer import Job, fit

    last = STEPS[-1]
    stage = kd_stage(2, **{"budget.steps": last, "checkpoint.every": last // 2, "checkpoint.best_by": "perplexity"})
    student, teacher = llama(300, 16, 1, 64), llama(300, 16, 2, 64)
    rows = [row for length in (4, 9, 17, 30) for row in rows_of(50, length, 300)]
    (stream,) = streams_of(stage, rows, teacher)
    seen: dict[str, dict[str, float]] = {}
    stream = replace(stream, source=Counting(stream.source, seen))
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            stage=stage, run=Run(Path(folder)), runtime=start("cpu", "float32"), student=student,
            teachers=[LocalTeacher(teacher)], tokenizer=load_tokenizer("smollm2-135m-instruct"), streams=[stream],
            validate=lambda: {"perplexity": 1.0}, examples_per_epoch=len(rows), seed=1, stop=StopRequest(),
            label="scaling",
        )  # fmt: skip
        fit(job)
    return seen


class Counting:
    """A source that notes what the process has open and in memory when some steps begin."""

    def __init__(self, source: Any, seen: dict[str, dict[str, float]]):
        self._source, self._seen, self._step = source, seen, 0

    def next(self, share: Any, progress: float) -> Any:
        self._step += 1
        if self._step in STEPS:
            files = len(os.listdir("/proc/self/fd"))
            self._seen[str(self._step)] = {"rss_mib": resident("VmRSS"), "open_files": files}
        return self._source.next(share, progress)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


# --- What a process has -----------------------------------------------------------------------------------------------


def resident(field: str) -> float:
    """MiB: VmRSS now, or VmHWM, its peak since it was last forgotten (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def forget_peak() -> float:
    """Forget the peak; what is resident now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def in_a_process(*arguments: str) -> Any:
    """What this file prints in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


# --- Everything, and what it says -------------------------------------------------------------------------------------


def measure(only: Sequence[str], repeats: int, most_rows: int) -> Iterator[tuple[str, Any]]:
    """Each part by its name, as it is ready."""
    for name, axis in AXES.items():
        if name in only:
            points = []
            for value in axis.values:
                asked = json.dumps(asdict(axis.setting(value)))
                found = in_a_process("--step", asked, "--repeats", str(repeats))
                points.append({"at": int(found["teacher_parameters"]) if name == "teacher" else value, **found})
                say(f"{name} {points[-1]['at']:,}: {found['seconds']:.3f} s, {found['mib']:.0f} MiB")
            yield name, points
    if "rows" in only:
        points = []
        for count in (count for count in ROWS if count <= most_rows):
            points.append({"at": count, **in_a_process("--rows", str(count))})
            say(f"rows {count:,}: {points[-1]['seconds']:.2f} s, {points[-1]['mib']:.0f} MiB")
        yield "rows", points
    if "cache" in only:
        points = []
        for count in (count for count in ROWS if count <= most_rows):
            points.append({"at": count, **in_a_process("--cache", str(count))})
            say(f"cache {count:,}: {points[-1]['seconds']:.2f} s, {points[-1]['mib']:.0f} MiB")
        yield "cache", points
    if "steps" in only:
        found = in_a_process("--steps")
        yield "steps", [{"at": int(step), **figures} for step, figures in found.items()]


def exponent(at: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the least squares line through log(at), log(values)."""
    xs, ys = [math.log(x) for x in at], [math.log(max(y, 1e-9)) for y in values]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covered = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return covered / sum((x - mean_x) ** 2 for x in xs)


def machine() -> str:
    """Its kind, for people: cores and vector instructions."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    widest = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "no AVX2")
    return f"{os.cpu_count()} cores, {platform.machine()} with {widest}, one thread"


def page(results: Mapping[str, Any]) -> str:
    """The tables of the page."""
    parts = []
    for name, axis in AXES.items():
        if points := _points(results, name):
            cells = [[f"{p['at']:,}", f"{p['seconds']:.3f}", f"{p['mib']:.0f}"] for p in points]
            parts.append(_table(f"### {axis.title}", [axis.unit, "s", "MiB"], cells))
            parts.append(_growth(points, ("seconds", "time"), ("mib", "memory")) + _about(results[name]))
    if points := _points(results, "rows"):
        head = ["rows", "s to read and tokenise", "rows a second", "MiB", "first batch, ms", "a batch, ms"]
        columns = {"at": ",d", "seconds": ".2f", "rows_per_s": ",.0f", "mib": ".0f"}
        columns |= {"first_draw_ms": ".2f", "draw_ms": ".3f"}
        parts.append(
            _table("### Rows", head, [[format(p[key], form) for key, form in columns.items()] for p in points])
        )
        told = _growth(points, ("seconds", "time"), ("mib", "memory"), ("draw_ms", "a batch"))
        parts.append(told + _about(results["rows"]))
    if points := _points(results, "cache"):
        head = ["rows", "s to write", "rows a second", "MiB", "ms to open", "a batch, ms"]
        columns = {"at": ",d", "seconds": ".2f", "rows_per_s": ",.0f", "mib": ".0f", "open_ms": ".1f", "read_ms": ".3f"}
        cells = [[format(p[key], form) for key, form in columns.items()] for p in points]
        parts.append(_table("### Rows of a cache", head, cells))
        told = _growth(points, ("seconds", "time"), ("mib", "memory"), ("open_ms", "opening"), ("read_ms", "a batch"))
        parts.append(told + _about(results["cache"]))
    if points := _points(results, "steps"):
        cells = [[f"{p['at']:,}", f"{p['rss_mib']:.1f}", str(int(p["open_files"]))] for p in points]
        parts.append(_table("### Steps of one run", ["step", "resident, MiB", "open files"], cells))
        times = points[-1]["rss_mib"] / points[0]["rss_mib"]
        parts.append(f"Resident memory at the last is {times:.3f} times that at the first." + _about(results["steps"]))
    return "\n\n".join(parts)


def _points(results: Mapping[str, Any], name: str) -> list[dict[str, float]]:
    return results[name]["points"] if name in results else []


def _about(part: Mapping[str, Any]) -> str:
    """Where and when it was measured."""
    return f" {part['machine']}, torch {part['torch']}, {part['date']}, medians of {part['repeats']}."


def _table(title: str, head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---:"] * len(head), *cells]
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines)])


def _growth(points: Sequence[Mapping[str, float]], *columns: tuple[str, str]) -> str:
    slopes = {told: exponent([p["at"] for p in points], [p[key] for p in points]) for key, told in columns}
    told = ", ".join(f"{what} {slope:.2f}" for what, slope in slopes.items())
    worse = [what for what, slope in slopes.items() if slope > LINEAR]
    return f"Exponents: {told}" + (f". **Worse than linear: {', '.join(worse)}.**" if worse else ".")


def write_page(file: Path, text: str) -> None:
    """Put the tables between the page's markers."""
    old = file.read_text(encoding="utf-8")
    if not re.search(f"{BEGIN}.*{END}", old, re.S):
        raise SystemExit(f"{file} has no place for the tables: put {BEGIN} and {END} where they are to be")
    new = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{text}\n{END}", old, flags=re.S)
    file.write_text(new, encoding="utf-8")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parts = (*AXES, "rows", "cache", "steps")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--repeats", type=int, default=3, help="steps that are timed at each point")
    parser.add_argument("--most-rows", type=int, default=ROWS[-1])
    parser.add_argument("--write", type=Path, help="a page with markers")
    parser.add_argument("--results", type=Path, default=RESULTS)
    for one in ("--step", "--rows", "--cache"):
        parser.add_argument(one, help=argparse.SUPPRESS)
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.step:
        return print(json.dumps(one_step(Setting(**json.loads(args.step)), args.repeats)))
    if args.rows:
        return print(json.dumps(loader(int(args.rows))))
    if args.cache:
        return print(json.dumps(cached(int(args.cache))))
    if args.steps:
        return print(json.dumps(many_steps()))
    results = json.loads(args.results.read_text(encoding="utf-8")) if args.results.exists() else {}
    about = {"machine": machine(), "torch": torch.__version__, "date": str(date.today()), "repeats": args.repeats}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    for name, points in measure(args.only, args.repeats, args.most_rows):
        results[name] = about | {"points": points}
        args.results.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = page(results)
    print(text)
    if args.write:
        write_page(args.write, text)
    return None


if __name__ == "__main__":
    main()
