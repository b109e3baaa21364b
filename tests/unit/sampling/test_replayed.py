"""Steps that are recorded once and replayed: by a tracer here, which like a CUDA graph then runs no Python."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from potstill.models import decoding, replayed
from potstill.models.decoding import CausalDecoder
from potstill.models.families import Causal
from potstill.models.replayed import on_gpu, recorder_for
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Mixed, Policy, Single, Speculative
from potstill.sampling.sampler import Response, sample
from tests import tiny
from tests.unit.sampling.test_sampler import PROMPTS, STOP, windowed

KINDS: dict[str, Callable[[int], Any]] = {
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "mistral": lambda _: windowed("mistral"),
    "gemma2": lambda _: windowed("gemma2"),
}


class Tracer:
    """Records what is done to tensors; what it gives back is written over at every replay, as a graph's is."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, step: Any, tokens: Tensor, columns: Tensor) -> Callable[[], Tensor]:
        self.recorded += 1
        with torch.no_grad():
            graph = make_fx(step)(tokens, columns)
            output = step(tokens, columns)

        def again() -> Tensor:
            self.replayed += 1
            with torch.no_grad():
                return output.copy_(graph(tokens, columns))

        return again


def run(policy: Policy, families: list[Causal], tracer: Tracer | None, **settings: Any) -> list[Response]:
    decoders = [CausalDecoder(one, 3, 8 + 12, tracer) for one in families]
    how = Decoding(12, STOP, **settings)
    return sample(policy, decoders, PROMPTS, how, seeds=range(len(PROMPTS)), slots=3)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several widths, although sequences are short."""
    monkeypatch.setattr(replayed, "COLUMNS", 8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [Single(), Mixed(0.3), Speculative(5)], ids=["student", "mixed", "speculative"])
def test_what_is_replayed_is_what_is_run(kind: str, policy: Policy) -> None:
    """Rows enter and leave, and their places are taken by others."""
    families = [Causal(KINDS[kind](seed).double()) for seed in (3, 4)][: policy.num_models]
    tracer = Tracer()
    found, expected = run(policy, families, tracer, temperature=1.3), run(policy, families, None, temperature=1.3)
    assert [response.ids for response in found] == [response.ids for response in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.behaviour_logprobs == pytest.approx(theirs.behaviour_logprobs, abs=1e-6)
        assert ours.student_logprobs == pytest.approx(theirs.student_logprobs, abs=1e-6)
    assert tracer.recorded <= 3 * policy.num_models  # 8, 16, and all 20 columns
    assert tracer.replayed > 4 * tracer.recorded


def test_what_was_recorded_of_one_sequence_is_replayed_of_several() -> None:
    one, tracer = Causal(tiny.llama(3).double()), Tracer()
    both = CausalDecoder(one, 3, 20, tracer), CausalDecoder(one, 3, 20)
    for prompts, tokens in (([[5, 6]], [1]), ([[7], [8, 9, 10]], [2, 3, 4]), ([], [5, 6, 7])):
        for each in both:
            if prompts:
                each.admit(prompts)
        found, expected = (each.step(torch.tensor(tokens)) for each in both)
        torch.testing.assert_close(found, expected)
    assert (tracer.recorded, tracer.replayed) == (1, 3)


def test_weights_are_read_anew_at_every_replay() -> None:
    """As an optimiser changes them: where they are."""
    one = Causal(tiny.llama(3).double())
    decoder = CausalDecoder(one, 2, 20, Tracer())
    plain = CausalDecoder(one, 2, 20)
    prompts = [[5, 6, 7], [8, 9]]
    for each in (decoder, plain):
        each.admit(prompts)
    tokens = torch.tensor([1, 2])
    torch.testing.assert_close(decoder.step(tokens), plain.step(tokens))
    with torch.no_grad():
        for weight in one.parameters():
            weight += 0.1 * torch.rand(weight.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decoder.step(tokens), plain.step(tokens))


def test_on_a_processor_nothing_is_recorded() -> None:
    assert recorder_for(tiny.llama(3)) is None


@pytest.mark.parametrize(
    ("devices", "records"),
    [(["cuda:0", "cuda:0"], True), (["cuda:0", "cuda:1"], False), (["cuda:0", "cpu"], False), (["cpu", "cpu"], False)],
)
def test_what_is_on_one_gpu_is_recorded(devices: list[str], records: bool) -> None:
    """Copies between two are no part of a graph of one."""
    weights = [SimpleNamespace(device=torch.device(device)) for device in devices]
    assert recorder_for(SimpleNamespace(parameters=lambda: weights)) is (on_gpu if records else None)


def test_a_decoder_replays_where_its_model_can_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = Tracer()
    monkeypatch.setattr(decoding, "recorder_for", lambda _: tracer)
    decoder = decoding.decoder_of(Causal(tiny.llama(3)), 2, 4, 6)
    decoder.admit([[5, 6, 7]])
    decoder.step(torch.tensor([1]))
    assert (tracer.recorded, tracer.replayed) == (1, 1)


def test_a_width_is_recorded_when_it_is_first_met_and_no_wider_than_sequences_may_be() -> None:
    """Of the longest sequence, wherever it stands, with the token that comes."""
    widths: list[int] = []

    def record(step: Any, tokens: Tensor, _columns: Tensor) -> Callable[[], Tensor]:
        widths.append(step.keywords["width"])
        return lambda: torch.zeros(len(tokens), 4)

    def forward(tokens: Tensor, at: Tensor, width: int) -> Tensor:
        raise AssertionError("it is only recorded")

    steps = replayed.Replayed(forward, 3, 20, torch.device("cpu"), record)
    for lengths, expected in (([3, 7], [8]), ([7, 2], [8]), ([2, 8, 1], [8, 16]), ([1], [8, 16]), ([19], [8, 16, 20])):
        assert steps(torch.zeros(len(lengths), dtype=torch.long), lengths).shape == (len(lengths), 4)
        assert widths == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_cuda_graph_is_what_is_run() -> None:
    one = Causal(tiny.llama(3).to("cuda"))
    assert recorder_for(one.model) is on_gpu
    how = Decoding(12, STOP, temperature=0)
    found = [
        sample(Single(), [CausalDecoder(one, 3, 20, record)], PROMPTS, how, seeds=range(6), slots=3)
        for record in (on_gpu, None)
    ]
    assert [response.ids for response in found[0]] == [response.ids for response in found[1]]
