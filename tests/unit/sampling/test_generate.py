"""Generation through the family adapter."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from potstill.models.families import Causal
from potstill.sampling.generate import generate
from tests import tiny

END = SimpleNamespace(eos_token_id=0)


def greedy_by_hand(model: torch.nn.Module, prompt: torch.Tensor, steps: int) -> list[int]:
    ids = prompt.tolist()
    for _ in range(steps):
        following = model(torch.tensor([ids])).logits[0, -1].argmax().item()
        if following == 0:
            break
        ids.append(following)
    return ids[len(prompt) :]


def test_greedy_rows_do_not_depend_on_their_padding() -> None:
    model = tiny.llama().double()
    batch = tiny.batch([(3, 1), (9, 1), (1, 1)], extra_left=2)
    answers = generate(Causal(model), batch, END, max_new_tokens=8, temperature=0, seed=0)
    for row, answer in enumerate(answers):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        assert answer.tolist() == greedy_by_hand(model, prompt, 8)


def test_samples_follow_the_seed_and_leave_the_random_state_alone() -> None:
    family, batch = Causal(tiny.llama()), tiny.batch([(3, 1)] * 4)
    before = torch.get_rng_state()
    draws = [generate(family, batch, END, max_new_tokens=12, temperature=1.0, seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = ([row.tolist() for row in draw] for draw in draws)
    assert first == again
    assert first != other


def test_a_models_own_generation_settings_do_not_leak_in() -> None:
    family, batch = Causal(tiny.llama()), tiny.batch([(5, 1)])
    plain = generate(family, batch, END, max_new_tokens=8, temperature=0, seed=0)
    family.model.generation_config.repetition_penalty = 50.0
    family.model.generation_config.no_repeat_ngram_size = 1
    assert generate(family, batch, END, max_new_tokens=8, temperature=0, seed=0)[0].tolist() == plain[0].tolist()
