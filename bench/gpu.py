"""What a GPU alone shows: a loss head, decoding, and whole steps of two pairs of models, in bfloat16.

    python -m bench.gpu [--only heads,decoding,pairs] [--repeats 5]
    python -m bench.gpu --quick             tiny shapes once, on any device, to see that all works

heads: B3 beside TRL's kernels and Liger, where they are installed. decoding: steps that are replayed, steps as they
come, transformers' generate. pairs: GPT-2 XL's shape teaches GPT-2's, and one of 8 billion parameters one of 0.6; a
step with the teacher asked, with its top 64 and 50 draws read, and on what the student writes.

Weights are drawn: what they are takes no time. Figures are seconds between two moments at which the GPU has nothing
left to do, subjects in turns. It was written where there is no GPU, and no figure of it is recorded.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

from bench import caches, loss_head, measuring, results, workload
from bench.loss_head import Inputs, Shape
from bench.measuring import Effort
from bench.onpolicy_step import our_step
from bench.results import Result
from bench.workload import Models
from potstill import recipe
from potstill.data.examples import Tokenised
from potstill.models.decoding import CausalDecoder
from potstill.models.families import Causal
from potstill.models.replayed import on_gpu
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Single
from potstill.sampling.sampler import sample
from potstill.teachers.local import LocalTeacher
from potstill.training import optim

HEADS = (Shape(49_152, 576, 8192, 0, None), Shape(151_936, 1024, 8192, 0, None), Shape(151_936, 4096, 8192, 0, None))
CACHED_OVER_ASKED, REPLAYED_OVER_GENERATE = 3.0, 5.0  # what is wanted of a pair, and of writing


@dataclass(frozen=True)
class Place:
    """Where, how often, and how large."""

    device: torch.device
    effort: Effort

    def clock(self) -> float:
        """Seconds, once nothing is left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def in_turns(self, subjects: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, ...]]:
        """Seconds of each at each repeat, after one turn that is not counted: it compiles, and fills what is kept."""
        measuring.in_turns(subjects, 1)
        return measuring.in_turns(subjects, self.effort.repeats, self.clock)


def heads(place: Place) -> Iterator[Result]:
    for shape in loss_head.QUICK if place.effort.quick else HEADS:
        loss_head.check(shape, place.device, torch.bfloat16)
        inputs = Inputs(shape.vocab, shape.hidden, shape.timed, place.device, torch.bfloat16)
        for objective in loss_head.OBJECTIVES:
            losses = loss_head.losses(objective)
            subjects: dict[str, Callable[[], Any]] = {
                name: partial(inputs.gradients_of, loss) for name, loss in losses.items()
            }
            seconds = place.in_turns({loss_head.FLOOR: partial(loss_head.four_products, inputs), **subjects})
            case, ours = f"{objective}, {shape.name}, {shape.timed} positions", seconds.pop("potstill")
            floor = seconds.pop(loss_head.FLOOR)
            yield Result("heads", case, "s", ours, loss_head.FLOOR, floor, "floor", loss_head.OF_FLOOR)
            for name, taken in seconds.items():
                yield Result("heads", case, "s", ours, name, taken)


def decoding(place: Place) -> Iterator[Result]:
    """256 responses of 128 tokens to prompts of 64, all at once."""
    count, prompt, new = (4, 8, 8) if place.effort.quick else (256, 64, 128)
    family = Causal(_model(GPT2, place, torch.bfloat16).eval())
    prompts = [list(row.prompt_ids) for row in _rows(count, prompt, 1)]
    ids = torch.tensor(prompts, device=place.device)
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": True, "top_k": 0, "pad_token_id": 0}

    def ours(record: Any) -> None:
        decoder = CausalDecoder(family, count, prompt + new, record)
        sample(Single(), [decoder], prompts, Decoding(new, frozenset()), seeds=range(count), slots=count)

    def generate() -> None:
        family.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)

    subjects: dict[str, Callable[[], Any]] = {"as they come": partial(ours, None), "generate": generate}
    if place.device.type == "cuda":
        subjects["potstill"] = partial(ours, on_gpu)
    seconds = place.in_turns(subjects)
    found = seconds.pop("potstill", seconds["as they come"])
    for name, taken in seconds.items():
        target = REPLAYED_OVER_GENERATE if name == "generate" else None
        yield Result("decoding", f"GPT-2's shape, {count} x {new} tokens", "s", found, name, taken, target=target)


def pairs(place: Place) -> Iterator[Result]:
    for name, (teacher, student) in PAIRS.items():
        models = _models(teacher, student, place)
        size, prompt, response = (2, 8, 16) if place.effort.quick else (16, 64, 192)
        texts = _rows(size, prompt, response)
        source = workload.data(models.tokenizer, texts)
        with TemporaryDirectory() as folder:
            streams = {"asked": workload.stream(source, LocalTeacher(models.teacher))}
            for form in ("top 64", "50 draws"):
                kept = caches.cached(form, models, Path(folder) / form)
                streams[form] = workload.stream(source, kept, caches.SIGNALS[form])
            steps = {
                form: partial(workload.step, models, stream, dtype=torch.bfloat16, size=size)
                for form, stream in streams.items()
            }
            seconds = place.in_turns(dict(steps))
        for form in ("top 64", "50 draws"):
            yield Result(
                "pairs", f"{name}, {form} read", "s", seconds[form], "asked", seconds["asked"], target=CACHED_OVER_ASKED
            )
        yield from _on_policy(name, models, place)
        del models, streams, steps, source
        gc.collect()
        torch.cuda.empty_cache()


def _on_policy(name: str, models: Models, place: Place) -> Iterator[Result]:
    """A step on what the student writes, beside as much writing by transformers' generate alone."""
    prompt, new = (8, 8) if place.effort.quick else (64, 128)
    texts = _rows(4, prompt, new)
    ids = torch.tensor([row.prompt_ids for row in texts], device=place.device)
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": True, "top_k": 0, "pad_token_id": 0}

    def generate() -> None:
        models.student.model.eval()
        with torch.autocast(place.device.type, torch.bfloat16):
            models.student.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        models.student.model.train()

    step = our_step(models, texts, new, dtype=torch.bfloat16)
    seconds = place.in_turns({"potstill": step, "generate alone": generate})
    case = f"{name}, a step on 4 x {new} tokens of its own"
    yield Result("pairs", case, "s", seconds["potstill"], "generate alone", seconds["generate alone"])


# --- Models and rows --------------------------------------------------------------------------------------------------


GPT2: dict[str, Any] = {"model_type": "gpt2"}
GPT2_XL: dict[str, Any] = {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25}
OF_8B: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
OF_600M: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip
PAIRS = {"GPT-2 XL to GPT-2": (GPT2_XL, GPT2), "8B to 0.6B": (OF_8B, OF_600M)}
TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 500},
    "llama": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 500,
    },
}  # fmt: skip


def _model(shape: dict[str, Any], place: Place, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = shape | (TINY[shape["model_type"]] if place.effort.quick else {})
    torch.manual_seed(0)
    with torch.device(place.device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=dtype)


def _models(teacher: dict[str, Any], student: dict[str, Any], place: Place) -> Models:
    """A teacher held in bfloat16, and a student whose weights are in float32, as a run has them."""
    taught = Causal(_model(student, place, torch.float32)).requires_grad_(True).train()
    optimizer = optim.build(taught, recipe.Optimizer())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    frozen = Causal(_model(teacher, place, torch.bfloat16)).requires_grad_(False).eval()
    return Models(frozen, taught, SimpleNamespace(eos_token_id=0), optimizer)


def _rows(count: int, prompt: int, response: int) -> list[Tokenised]:
    ids = torch.randint(1, 500, (count, prompt + response), generator=torch.Generator().manual_seed(0)).tolist()
    return [
        Tokenised(f"row:{at}", tuple(row[:prompt]), tuple(row[prompt:]), "", "", truncated=False)
        for at, row in enumerate(ids)
    ]


# --- The command ------------------------------------------------------------------------------------------------------


PARTS: dict[str, Callable[[Place], Iterator[Result]]] = {"heads": heads, "decoding": decoding, "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="some of the parts, as heads,pairs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if unknown := set(given.only.split(",")) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if not torch.cuda.is_available() and not given.quick:
        parser.error("there is no GPU here: --quick shows on any device that all works")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = Place(device, Effort(1 if given.quick else given.repeats, given.quick))
    found = [result for name in given.only.split(",") for result in PARTS[name](place)]
    print(results.table([replace(result, target=None) for result in found] if given.quick else found))
    if not given.quick:
        machine = measuring.machine() | {"name": torch.cuda.get_device_name()}
        print(results.save(Path(__file__).parent / "results", date.today().isoformat(), machine, found))


if __name__ == "__main__":
    main()
