"""Responses from a vLLM engine, for one model on graphics processors: the optional extra ``potstill[vllm]``.

NOT RUN: nothing that reaches vLLM itself (building the engine, ``write``, ``sync``) has been executed by us, for want
of a machine with it. What is tested: what is refused, the error where vLLM is missing, the mapping of ``Decoding`` to
sampling parameters, and that of an engine's answer to a ``Response``.

Source: documentation of vLLM 0.32, "Weight Transfer" (training/weight_transfer) with its pages "IPC Engine" and "Base
Classes", and the references of ``LLM``, ``SamplingParams`` and the sampler's ``logprobs_mode``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch.distributed as dist

from potstill.errors import ConfigError
from potstill.models.families import Family
from potstill.sampling.distributions import Decoding
from potstill.sampling.policies import Policy, Single
from potstill.sampling.sampler import Response
from potstill.sampling.writer import check_prompts

COLDEST = 0.01  # vLLM raises temperatures between 0 and this one, and so would draw from another distribution
SERIALIZATION = "VLLM_ALLOW_INSECURE_SERIALIZATION"


class VllmWriter:
    """A ``Writer`` whose model lives in an engine of its own, beside the one that is trained, on the same GPU.

    A response is reproducible from its seed only as far as vLLM's arithmetic does not depend on the batch, and is not
    the one that ``LocalWriter`` draws from that seed. The engine draws from every row of the output embedding: a model
    whose embedding is padded beyond its vocabulary can write a padded token there.

    Args:
        folder: the model as saved by ``save_pretrained``; its weights are replaced by each ``sync``.
        policy: ``Single``; mixed and speculative writing need two models' logits at every step, which engines keep.
        decoding: how tokens are chosen.
        max_tokens: of a prompt and its response together.
        memory_share: of the GPU's memory that the engine may take, from 0 to 1: the trained model needs the rest.
    Raises: ConfigError for what vLLM cannot do as asked, or where it is not installed.
    """

    def __init__(
        self, folder: str, policy: Policy, decoding: Decoding, *, max_tokens: int, memory_share: float = 0.3
    ) -> None:
        check(policy, decoding)
        vllm = import_vllm()
        self._decoding = decoding
        self._sender: Any = None
        self._sent: Family | None = None
        self._params = vllm.SamplingParams
        self._engine = vllm.LLM(
            model=folder,
            skip_tokenizer_init=True,
            max_model_len=max_tokens,
            gpu_memory_utilization=memory_share,
            logprobs_mode="processed_logprobs",  # of what is drawn from, and not of the bare logits
            generation_config="vllm",  # and not the folder's own
            weight_transfer_config=import_vllm("vllm.config").WeightTransferConfig(backend="ipc"),
        )

    def write(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int]) -> list[Response]:
        check_prompts(prompts, seeds)
        if not prompts:
            return []
        params = [self._params(**sampling_parameters(self._decoding, seed)) for seed in seeds]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._engine.generate(requests, params, use_tqdm=False)
        return [response(output, self._decoding) for output in outputs]

    def sync(self, family: Family) -> None:
        """Give the engine this model's present weights; call it after each update that the next rollout should see.

        By CUDA IPC: the engine, a process of its own, reads the tensors where they lie, on the GPU that both use. What
        it is told of them is pickled, which vLLM allows where the environment says so: set
        ``VLLM_ALLOW_INSECURE_SERIALIZATION=1`` before the writer is made.

        Raises: ConfigError as ``check_syncable`` does.
        """
        check_syncable(family)
        if self._sent is not family:
            self._sender, self._sent = _sender(self._engine, family), family
        self._sender.send_weights()
        self._engine.reset_prefix_cache()  # keys and values of the old weights


class SyncedWriter:
    """A ``Writer`` whose engine is given a model's present weights before each rollout."""

    def __init__(self, writer: VllmWriter, family: Family):
        self._writer, self._family = writer, family

    def write(self, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int]) -> list[Response]:
        self._writer.sync(self._family)
        return self._writer.write(prompts, seeds=seeds)


class _Client:
    """vLLM's ``VLLMWeightSyncClient`` for an engine in a child process: its four calls, passed on."""

    def __init__(self, engine: Any):
        self._engine = engine

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._engine.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self._engine.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._engine.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._engine.finish_weight_update()


def check(policy: Policy, decoding: Decoding) -> None:
    """Refuse what vLLM does not do, or does otherwise. Raises: ConfigError."""
    if not isinstance(policy, Single):
        raise ConfigError(
            f"vLLM cannot write as {type(policy).__name__}: that needs both models' logits at every step",
            "write with the local sampler, or let the student or the teacher write alone",
        )
    if decoding.no_repeat_ngram:
        raise ConfigError("vLLM has no no_repeat_ngram", "set it to 0, or write with the local sampler")
    if 0 < decoding.temperature < COLDEST:
        raise ConfigError(
            f"temperature is {decoding.temperature}, which vLLM would raise to {COLDEST}",
            f"use 0 (greedy), {COLDEST} or more, or the local sampler",
        )


def check_syncable(family: Family) -> None:
    """Refuse weights that cannot be handed over: adapters', off the GPU, of several processes. Raises: ConfigError."""
    if hasattr(family.model, "peft_config"):
        raise ConfigError(
            "the model carries adapters, whose weights vLLM's model does not have", "merge them, or sample locally"
        )
    if family.model.device.type != "cuda":
        raise ConfigError(
            f"the model is on {family.model.device}, and vLLM reads weights from a GPU", "train on the engine's GPU"
        )
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ConfigError(
            "weights are handed to vLLM by one process, and this run has several", "train in one, or sample locally"
        )
    if os.environ.get(SERIALIZATION) != "1":
        raise ConfigError("vLLM takes weights as pickles only where it is allowed to", f"export {SERIALIZATION}=1")


def sampling_parameters(decoding: Decoding, seed: int) -> dict[str, Any]:
    """What ``vllm.SamplingParams`` takes to choose tokens as ``decoding`` says."""
    return {
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,  # 0: all, here and there
        "top_p": decoding.top_p,
        "seed": seed % 2**63,  # there, -1 would mean none
        "stop_token_ids": sorted(decoding.stop_ids),
        "ignore_eos": True,  # the stop ids are ours alone, not those in the model's folder as well
        "logprobs": 0,  # of the chosen token, and of no other
        "detokenize": False,
    }


def response(output: Any, decoding: Decoding) -> Response:
    """The response in a ``vllm.RequestOutput``. Student and behaviour are one: the model writes alone.

    Greedy writing gives its token probability 1 here, while the engine reports the softmax's.

    Raises: ValueError where a chosen token comes without its log-probability.
    """
    completion = output.outputs[0]
    ids = tuple(completion.token_ids)
    found = completion.logprobs or []
    if len(found) != len(ids) or any(token not in at for token, at in zip(ids, found, strict=True)):
        raise ValueError(f"{len(ids)} tokens, and log-probabilities that are not theirs")
    reported = tuple(float(at[token].logprob) for token, at in zip(ids, found, strict=True))
    logprobs = reported if decoding.temperature else (0.0,) * len(ids)
    return Response(ids, logprobs, logprobs, bool(ids) and ids[-1] in decoding.stop_ids)


def import_vllm(module: str = "vllm") -> Any:
    """vLLM or a part of it, when it is asked for. Raises: ConfigError where the extra is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"vLLM cannot be imported: {error}", "pip install 'potstill[vllm]'") from error


def _sender(engine: Any, family: Family) -> Any:
    transfer = import_vllm("vllm.distributed.weight_transfer")
    info = import_vllm("vllm.distributed.weight_transfer.ipc_engine").IPCTrainerInitInfo(rank=0, packed=False)
    source = transfer.ModuleSource(family.model)
    return transfer.WeightTransferTrainerFactory.trainer_init(init_info=info, client=_Client(engine), source=source)
