"""A teacher on another device than those who ask it. There is one real device here: the other is torch's meta device,
to which everything can be moved, and from which nothing comes back, so each direction is looked at by itself."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill.models.families import Family, family_of
from potstill.models.slots import beside
from potstill.teachers.local import LocalTeacher, Remembering
from potstill.types import Batch, Head, Live
from tests import tiny

LENGTHS = [(3, 5), (2, 4)]
CPU, META = torch.device("cpu"), torch.device("meta")


class Placed(nn.Module):
    """A family on a device, which notes where the ids come that it reads. Its states are on the CPU."""

    def __init__(self, where: torch.device):
        super().__init__()
        self.model, self.read = SimpleNamespace(device=where), []
        self.head = Head(torch.randn(7, 4), torch.randn(7), None, 6)

    def forward(self, batch: Batch) -> Tensor:
        self.read += [batch.prompt_ids.device, batch.response_ids.device, batch.response_mask.device]
        return torch.ones(*batch.response_ids.shape, 4)


def asked_from(where: torch.device) -> Batch:
    """A batch whose responses are asked about from a device, and whose other ids are on the CPU already."""
    batch = tiny.batch(LENGTHS)
    return replace(batch, response_ids=batch.response_ids.to(where))


def test_ids_go_to_the_teacher() -> None:
    family: Any = Placed(META)
    live = LocalTeacher(family).signal(tiny.batch(LENGTHS))
    assert set(family.read) == {META}
    assert live.hidden.device == CPU  # where it was asked


def usable_on(live: Live, where: torch.device) -> bool:
    """Whether states and head meet there."""
    return live.hidden.device == live.head(live.hidden).device == where


def test_states_come_back_to_a_copy_of_the_head() -> None:
    family: Any = Placed(CPU)
    teacher = LocalTeacher(family)
    live = teacher.signal(asked_from(META))
    assert usable_on(live, META)
    assert live.head(live.hidden).shape == (2, 5, 6)
    assert teacher.signal(asked_from(META)).head.weight is live.head.weight  # moved once
    assert usable_on(teacher.signal(asked_from(CPU)), CPU)
    assert family.head.weight.device == CPU  # and the teacher has its own still


def test_what_is_remembered_is_told_where_it_is_asked() -> None:
    """The teacher's own row of a table is measured on its device, and the student's behind it on another."""
    family: Any = Placed(CPU)
    teacher = Remembering(LocalTeacher(family))
    for where in (CPU, META, CPU):
        assert usable_on(teacher.signal(asked_from(where)), where)
    assert len(family.read) == 3  # it has run once


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.t5, tiny.bart])
def test_on_one_device_the_models_own_head_and_states_are_told(make: Any) -> None:
    family: Family = family_of(make())
    batch = tiny.batch(LENGTHS)
    live = LocalTeacher(family).signal(batch)
    assert live.head.weight is family.model.get_output_embeddings().weight
    with torch.no_grad():
        assert torch.equal(live.hidden, family(batch))
    teacher = Remembering(LocalTeacher(family))
    first, second = teacher.signal(batch), teacher.signal(batch)
    assert second.hidden is first.hidden  # from memory


def unlike(head: Head, how: str) -> Head:
    """A head that is another one, if only by a bit."""
    if how == "trained":
        return replace(head, weight=head.weight.clone().requires_grad_())
    if how == "a bit":
        weight = head.weight.clone()
        weight[3, 1] = weight[3, 1].nextafter(torch.tensor(torch.inf))
        return replace(head, weight=weight)
    if how == "precision":
        return replace(head, weight=head.weight.double())
    if how == "bias":
        return replace(head, bias=torch.zeros(len(head.weight)))
    return replace(head, vocab_size=head.vocab_size - 1)


def test_a_head_that_is_the_same_is_shared_and_outlives_the_teacher() -> None:
    loads: list[Family] = []

    def load() -> Family:
        loads.append(family_of(tiny.llama(3)))
        return loads[-1]

    teacher, batch = LocalTeacher(load(), load), tiny.batch(LENGTHS)
    own = weakref.ref(teacher.family.head.weight)
    said = teacher.signal(batch)
    logits = said.head(said.hidden)
    head = replace(said.head, weight=said.head.weight.detach().clone())
    assert teacher.share_head(head)
    assert teacher.signal(batch).head is head
    del said
    assert teacher.unload()
    loads.clear()
    gc.collect()
    assert own() is None  # nothing of it is left
    assert teacher.head_on(CPU) is head
    again = teacher.signal(batch)  # it is loaded again
    assert again.head is head
    assert torch.equal(again.head(again.hidden), logits)


@pytest.mark.parametrize("how", ["trained", "a bit", "precision", "bias", "vocabulary"])
def test_a_head_that_is_another_is_not_shared(how: str) -> None:
    family = family_of(tiny.llama(3))
    teacher = LocalTeacher(family)
    assert not teacher.share_head(unlike(replace(family.head, weight=family.head.weight.detach()), how))
    assert teacher.head_on(CPU).weight is family.head.weight


class Told:
    """A decoder that notes where its tokens are, and tells logits on the CPU."""

    start = 7

    def __init__(self) -> None:
        self.read: list[torch.device] = []
        self.left = -1

    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return torch.zeros(len(prompts), 4)

    def step(self, tokens: Tensor) -> Tensor:
        self.read.append(tokens.device)
        return torch.zeros(len(tokens), 4)

    def leave(self, place: int) -> None:
        self.left = place


def test_a_decoder_elsewhere_is_given_tokens_there_and_tells_logits_here() -> None:
    there = Told()
    decoder = beside(there, META, CPU)
    decoder.step(torch.zeros(2, dtype=torch.long))
    decoder.leave(1)
    assert (decoder.start, there.left, there.read) == (7, 1, [META])
    here = beside(there, CPU, META)
    assert here.admit([[1], [2]]).device == META
    assert here.step(torch.zeros(2, dtype=torch.long)).device == META
    assert beside(there, CPU, CPU) is there
