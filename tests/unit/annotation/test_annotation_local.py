"""A model of this process as a teacher, of every family: search and sampler agree, and likelihoods are the model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.annotation.annotator import Asked, Written
from potstill.annotation.beams import Search
from potstill.annotation.local import LocalAnnotator
from potstill.data.tokenise import encodes_pairs
from potstill.errors import ConfigError
from potstill.evaluation.suites.subject import Subject, open_subject
from tests import tiny

ASKED = [Asked(f"r{n}", 0, (("user", f"What did the {animal} eat?"),), n) for n, animal in enumerate(["goat", "owl"])]
MODELS = {"llama": tiny.llama, "t5": tiny.t5, "bart": tiny.bart}


@pytest.fixture(scope="module", params=MODELS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    made: Any = MODELS[request.param](3)
    return open_subject(str(tiny.save(made.double(), folder)))


def written(annotator: LocalAnnotator, asked: list[Asked] = ASKED) -> list[Written]:
    found = {one.id: text for one, text in annotator.write(asked)}
    return [text for one in asked if isinstance(text := found[one.id], Written)]


def searching(subject: Subject, **settings: Any) -> LocalAnnotator:
    search = Search(**{"max_new_tokens": 12} | settings)
    decoding = subject.decoding(search.max_new_tokens, temperature=search.temperature)
    return LocalAnnotator(subject, decoding, search)


def test_a_greedy_search_writes_what_the_greedy_sampler_writes(subject: Subject) -> None:
    searched = searching(subject)
    sampled = replace(searched, search=None)
    assert written(searched) == written(sampled)
    assert len(written(searched)) == 2


@torch.no_grad()
def test_questions_searched_together_are_searched_as_the_library_does_each_alone(subject: Subject) -> None:
    """The settings of Klinge's reasons, shortened. Written here without batches, padding or our settings."""
    found = written(searching(subject, num_beams=3, repetition_penalty=1.15, min_new_tokens=6))
    end, model = subject.tokenizer.eos_token_id, subject.family.model
    model.generation_config.forced_eos_token_id = None  # BART's: an end that nobody wrote
    for one, asked in zip(found, ASKED, strict=True):
        prompt = subject.tokenizer(asked.turns[0][1], return_tensors="pt")["input_ids"]
        settings = {"num_beams": 3, "repetition_penalty": 1.15, "min_new_tokens": 6, "max_new_tokens": 12}
        ids = model.generate(prompt, do_sample=False, eos_token_id=end, pad_token_id=end, **settings)[0].tolist()
        ids = ids[1:] if model.config.is_encoder_decoder else ids[prompt.shape[1] :]
        assert one.text == subject.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert one.finished == (end in ids)


def test_an_invented_next_example_is_cut_off_a_plain_text(subject: Subject) -> None:
    ids = subject.tokenizer("It ate a hat.\n\n---\n\nWhat did the dog eat?", add_special_tokens=False)["input_ids"]
    annotator = searching(subject)
    assert annotator._read(ids, False) == Written("It ate a hat.", True)
    framed = replace(annotator, subject=replace(subject, template="chat"))
    assert framed._read(ids, False).text.endswith("eat?")


def test_drawn_searches_do_not_depend_on_their_neighbours(subject: Subject) -> None:
    drawn = searching(subject, temperature=1.0, repetition_penalty=1.1)
    state = torch.get_rng_state()
    both = written(drawn)
    assert [written(drawn, [one])[0] for one in ASKED] == both
    assert torch.equal(torch.get_rng_state(), state)
    assert written(drawn, [replace(one, seed=one.seed + 7) for one in ASKED]) != both


def test_nats_are_of_the_text_behind_its_question(subject: Subject) -> None:
    annotator = searching(subject)
    (ours,) = annotator.nats(ASKED[:1], ["a hat"])
    ((theirs, _),) = subject.nats([ASKED[0].turns[0][1]], ["a hat"])
    assert ours == pytest.approx(theirs)
    assert annotator.nats(ASKED[:1], ["a dog"]) != [ours]
    spaced = replace(ASKED[0], turns=(("user", f"{ASKED[0].turns[0][1]} \n"),))
    continues = not encodes_pairs(subject.tokenizer)  # a source is asked as it is
    assert (annotator.nats([spaced], ["a hat"]) == pytest.approx([theirs])) == continues


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"repetition_penalty": 1.1}, {"min_new_tokens": 3}])
def test_what_the_sampler_does_not_know_is_searched(settings: dict[str, Any]) -> None:
    assert not Search(12, temperature=0.7, top_p=0.9, **settings).is_plain
    assert Search(12, temperature=0.7, top_p=0.9).is_plain


@pytest.mark.parametrize(
    "settings", [{"num_beams": 0}, {"repetition_penalty": 0.0}, {"min_new_tokens": 13}, {"min_new_tokens": -1}]
)
def test_searches_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Search(**{"max_new_tokens": 12} | settings)
