"""Steps that are recorded once and replayed: by a tracer here, which like a CUDA graph then runs no Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from potstill.models import replayed
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
    decoding = Decoding(12, STOP, **settings)
    return sample(policy, decoders, PROMPTS, decoding, seeds=range(len(PROMPTS)), slots=3)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_cuda_graph_is_what_is_run() -> None:
    one = Causal(tiny.llama(3).to("cuda"))
    assert recorder_for(one.model) is on_gpu
    decoding = Decoding(12, STOP, temperature=0)
    found = [
        sample(Single(), [CausalDecoder(one, 3, 20, record)], PROMPTS, decoding, seeds=range(6), slots=3)
        for record in (on_gpu, None)
    ]
    assert [response.ids for response in found[0]] == [response.ids for response in found[1]]
