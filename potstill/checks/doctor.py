"""What can be known to go wrong before an hour is spent: of the machine, and of a recipe's models and data."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from potstill import recipe_io
from potstill.environment import processor, versions
from potstill.errors import PotstillError
from potstill.recipe import Recipe

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    status: Literal["ok", "note", "bad"]
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.status:5} {self.what:14} {self.detail}"


def machine() -> list[Finding]:
    """Versions, device, memory and disk."""
    import psutil
    import torch

    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    disk, memory = shutil.disk_usage(Path.cwd()).free / GIB, psutil.virtual_memory().available / GIB
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device = cuda or ("mps" if torch.backends.mps.is_available() else f"cpu, {torch.get_num_threads()} threads")
    return [
        Finding("ok", "python", sys.version.split()[0]),
        Finding("bad" if "not installed" in packages else "ok", "packages", packages),
        Finding("ok", "device", f"{device}; {processor()}"),
        Finding("ok" if memory > 4 else "note", "memory", f"{memory:.1f} GiB free; the demo needs 4"),
        Finding("ok" if disk > 2 else "bad", "disk", f"{disk:.1f} GiB free here; the demo needs 2"),
        *_optional("gguf", "reads .gguf models and the embedded teacher: pip install 'potstill[gguf]'"),
        *_optional("accelerate", "splits teachers over devices, or keeps them off: pip install 'potstill[large]'"),
        *_optional("torchao", "holds teachers in 8 bits: pip install 'potstill[quantised]'"),
        *_optional("bitsandbytes", "holds teachers in 8 or 4 bits: pip install 'potstill[quantised]'"),
        *_optional("vllm", "writes rollouts on GPUs: pip install 'potstill[vllm]'"),
    ]


def _optional(package: str, purpose: str) -> Iterator[Finding]:
    if importlib.util.find_spec(package) is None:
        yield Finding("note", package, f"not installed; it {purpose}")


def recipe(
    target: str, overrides: Mapping[str, Any], methods: Mapping[str, Callable[..., Recipe]], allow_remote_code: bool
) -> list[Finding]:
    """The recipe itself, its tokenizers, how its prompts look, its data and the memory it will take.

    A check that fails ends the list: what comes after it depends on it.
    """
    findings: list[Finding] = []
    try:
        for finding in _recipe_findings(target, overrides, methods, allow_remote_code):
            findings.append(finding)
    except PotstillError as error:
        findings.append(Finding("bad", type(error).__name__, str(error)))
    return findings


def _recipe_findings(
    target: str, overrides: Mapping[str, Any], methods: Mapping[str, Callable[..., Recipe]], allow_remote_code: bool
) -> Iterator[Finding]:
    from potstill.checks.models import check_depths
    from potstill.stages import beforehand

    loaded = recipe_io.load(target, overrides, methods=methods)
    several = len(loaded.stages) > 1
    yield Finding("ok", "recipe", f"{loaded.method}, {len(loaded.stages)} stage{'s' * several}")
    check_depths(loaded, allow_remote_code)
    for one in beforehand(loaded):
        if several:
            yield Finding("ok", "stage", one.stage.name)
        yield from _stage_findings(one, allow_remote_code)


def _stage_findings(loaded: Recipe, allow_remote_code: bool) -> Iterator[Finding]:
    from potstill import assembly
    from potstill.bench import UNTRAINED_WRITER, check_texts, writes_untrained
    from potstill.data.prepare import left_out, prepare
    from potstill.streams import plain_text_of, views_of

    stage = loaded.stage
    tokenizer = assembly.student_tokenizer(stage, allow_remote_code)
    yield Finding(
        "ok", "student", f"{assembly.source_of(stage)[0]}, {len(tokenizer)} tokens, ends with {tokenizer.eos_token!r}"
    )
    if stage.teacher:
        shared = assembly.shared_vocabulary_of(stage, tokenizer, allow_remote_code)
        yield Finding(
            "note" if shared.note else "ok",
            "tokenizers",
            f"the same; {shared.note or f'{shared.size} logits compared'}",
        )
    yield from _memory(loaded, allow_remote_code)
    if writes_untrained(stage):
        yield Finding("note", "student", UNTRAINED_WRITER.replace("\n", " "))
    data = prepare(stage.data, tokenizer, streams=views_of(stage), seed=loaded.seed)
    sizes = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.heldout)} held-out"
    yield Finding("ok", "data", f"{stage.data.path}: {sizes}")
    check_texts(stage, data, plain_text_of(stage, tokenizer), allow_remote_code)
    cut = left_out(data, stage.data)
    seen = "the models see every answer and rollout whole"
    yield Finding("note" if cut else "ok", "lengths", cut or f"{seen}, and every row")
    first = data.train[0]
    yield Finding(
        "ok",
        "first row",
        repr(tokenizer.decode(first.prompt_ids) + " >>> " + tokenizer.decode(first.response_ids))[:400],
    )


def _memory(loaded: Recipe, allow_remote_code: bool) -> Iterator[Finding]:
    """Weights, gradients and optimizer state, from the models' configs alone."""
    import psutil

    from potstill.checks.dry.sizes import memory_of, told_of

    if held := told_of(loaded.stage):
        yield Finding("note", "teacher", f"{held}; below is what its weights take so, wherever they are")
    parts = memory_of(loaded, allow_remote_code)
    total, free = sum(parts.values()), psutil.virtual_memory().available
    detail = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    status: Literal["ok", "bad"] = "ok" if total < free else "bad"
    yield Finding(status, "memory needed", f"{total / GIB:.2f} GiB and activations ({detail}); {free / GIB:.1f} free")
