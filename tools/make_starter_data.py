"""Make the starter data of potstill: short prompts of our own, answered once by SmolLM2-135M-Instruct.

The prompts are built from the template and topic lists in this file; train and held-out use different
templates and different topics. The responses are sampled from the teacher, filtered, and written as
``train.jsonl`` and ``heldout.jsonl``. Regenerate the files, then measure what PROVENANCE.md states:

    OMP_NUM_THREADS=2 python tools/make_starter_data.py --model DIR --out potstill/data/starter
    python tools/make_starter_data.py --model DIR --out potstill/data/starter --check

DIR is the teacher as an ordinary transformers folder (weights and tokenizer). The run is float32 on the CPU;
the same seed, torch version and thread count give the same files. ``--check`` needs the tokenizer only.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SPLITS = ("train", "heldout")
WANTED = {
    ("train", "story"): 240,
    ("train", "instruction"): 160,
    ("heldout", "story"): 48,
    ("heldout", "instruction"): 32,
}
SURPLUS = 1.15  # candidate prompts for each row wanted: some never get an answer that passes
ATTEMPTS = 4  # samples for one prompt before it is dropped
BATCH = 32
TEMPERATURE, TOP_P, MAX_NEW_TOKENS = 0.6, 0.9, 90
PROMPT_WORDS = (8, 25)
RESPONSE_TOKENS = (25, 80)
NEAR_DUPLICATE = 0.75  # Jaccard overlap of word pairs from which two prompts count as the same


def listed(text: str) -> list[str]:
    """The items of a comma-separated text that runs over several lines."""
    return [item.strip() for item in " ".join(text.split()).split(",")]


STORY_TEMPLATES = {
    "train": [
        "Write a very short story of three sentences about {who} who {event}.",
        "Tell a tiny bedtime story in three short sentences: {who} {event}.",
        "Make up a simple story for small children, three sentences long, in which {who} {event}.",
        "Please tell a short bedtime story about {who} who {event}. Three sentences are enough.",
        "Could you create a brief fairy tale where {who} {event}? A few simple lines will do.",
        "Write a short story for young children about {who} who {event}. Use three sentences.",
        "Write a tiny story for kids, in three simple sentences, about {who} who {event}.",
    ],
    "heldout": [
        "Invent a brief fable with a happy ending on {who} that {event}.",
        "Can you think up a cute tale for preschoolers with {who} that {event}? Three lines at most.",
        "I would like a mini adventure to read aloud to kindergarten pupils: {who} {event}.",
        "My daughter wants to hear a little goodnight tale: how {who} {event}. Be brief.",
    ],
}
CHARACTERS = {
    "train": listed(
        """
        a shy fox, a brave mouse, a sleepy bear, a curious kitten, a small blue bird, a kind baker, a
        young farmer, a lonely robot, a playful puppy, an old sailor, a tiny dragon, a hungry rabbit, a
        clever crow, a slow turtle, a girl named Mina, a boy named Tomas, a cheerful frog, a grumpy goat,
        a gentle giant, a little duck, a quiet owl, a busy ant, a proud rooster, a lost lamb, a friendly
        whale, a young painter, a silly monkey, a careful hedgehog, a baby elephant, a brown pony, a
        thoughtful snail, a new postman, a gray squirrel, a cold penguin, a small train driver, a tired
        nurse, a girl named Olive, a boy named Petro, a white swan, a merry clown, a forgetful king, a
        little star, a wooden doll, a hopeful tailor
        """
    ),
    "heldout": listed(
        """
        a timid otter, a bold beaver, a spotted calf, a nervous knight, a jolly gardener, a tall giraffe,
        a girl named Freya, a boy named Idris, a purple butterfly, a wise badger, a lazy crocodile, an
        honest fisherman, a young witch, a paper boat, a polite zebra
        """
    ),
}
EVENTS = {
    "train": listed(
        """
        finds a red kite, loses a warm hat, plants a tiny seed, hears a strange song, makes a new friend,
        gets lost in the woods, learns to swim, builds a small house, shares the last apple, is afraid of
        the dark, sees snow for the first time, looks for a lost key, bakes a big cake, helps a hurt bee,
        wants to touch the moon, cannot fall asleep, finds a map in a bottle, waits for the rain to stop,
        crosses a wide river, wins a funny race, paints a yellow door, says sorry to a neighbor, finds a
        lonely egg, rides a bus to the sea, climbs a steep hill, hides from the thunder, gives away a
        favorite toy, cleans a muddy pond, breaks a blue cup, writes a letter to the sun, fixes a broken
        bridge, picks berries for a soup, misses an old friend, opens a mysterious box, tries to whistle,
        wakes up too early
        """
    ),
    "heldout": listed(
        """
        discovers a hidden cave, borrows a ladder, follows a trail of feathers, teaches others to dance,
        saves a stranded fish, mends a torn blanket, chases a rolling pumpkin, visits a lighthouse,
        carries lanterns through fog, trades a button for a drum, tells the truth at last, sails across a
        puddle, guards a melting snowman
        """
    ),
}
# Instructions come in groups, so that a template only meets topics that fit it.
INSTRUCTION_TEMPLATES = {
    "train": {
        "thing": [
            "What is {topic} used for? Answer in two sentences.",
            "Explain in two simple sentences what {topic} does.",
            "Describe {topic} to a child in two or three simple sentences.",
        ],
        "skill": [
            "Give one helpful tip on how to {topic}, in two sentences.",
            "How do I {topic}? Give a short answer of two sentences.",
            "In two sentences, say why it is good to {topic}.",
        ],
        "why": [
            "Explain simply, in two sentences, the reason that {topic}.",
            "Tell me why {topic}, in two short sentences.",
        ],
        "pair": [
            "What is the main difference between {topic}? Use two sentences.",
            "Compare {topic} in two short, plain sentences.",
        ],
    },
    "heldout": {
        "place": [
            "Say briefly, in a line or two, what someone can see at {topic}.",
            "Briefly, why do people enjoy going to {topic}?",
        ],
        "nature": [
            "Teach me a little about {topic}, and keep your reply brief.",
            "Give a brief introduction to {topic} for complete beginners.",
            "Share one interesting fact regarding {topic}, with a brief comment.",
        ],
    },
}
INSTRUCTION_TOPICS = {
    "train": {
        "thing": listed(
            """
            a bicycle, a kettle, an umbrella, a compass, a pair of scissors, a clock, a ladle, a mirror, a
            thermometer, a candle, a bridge, a hammer, a pillow, a telescope, a zipper, a calendar, a
            wheelbarrow, a toothbrush, a magnet, a backpack, a refrigerator, a whistle, a paintbrush, a
            seat belt, a microscope, a broom, a stamp, a dictionary
            """
        ),
        "skill": listed(
            """
            sleep well at night, save water at home, learn new words, cook plain rice, keep a room tidy,
            make new friends, wash an apple, read more books, stay calm before a test, care for a cat,
            speak clearly, save a little money, draw a tree, write a thank-you note, boil an egg, wake up
            on time, practice the piano, pack a lunch box, take a walk every day, listen carefully, ride a
            bus safely, share with others, remember names, brush your teeth
            """
        ),
        "why": listed(
            """
            leaves are green, ice floats on water, we need sleep, birds fly south, the sky looks blue,
            bread rises in the oven, plants need sunlight, we wash our hands, the moon changes shape, cats
            purr, we feel thirsty, the sea is salty, metal feels cold, dogs wag their tails, we have two
            eyes, the days are longer in summer, bees visit flowers, we sneeze
            """
        ),
        "pair": listed(
            """
            tea and coffee, a lake and a river, cats and dogs, a book and a film, cotton and wool, a train
            and a car, butter and cheese, a guitar and a violin, a moth and a bee, winter and spring, a
            chair and a sofa, sugar and salt, a pen and a pencil, soup and stew
            """
        ),
    },
    "heldout": {
        "place": listed(
            """
            a library, a harbor, a bakery, a museum, a castle, a farmers' market, a theater, a campsite,
            an airport, a swimming pool
            """
        ),
        "nature": listed(
            """
            volcanoes, deserts, waterfalls, mushrooms, coral reefs, dolphins, earthquakes, rainbows,
            glaciers, spiders, bamboo, octopuses, thunderstorms, parrots
            """
        ),
    },
}
REFUSALS = (
    "i'm sorry",
    "i am sorry",
    "sorry",
    "i cannot",
    "i can't",
    "i'm not able",
    "i am not able",
    "as an ai",
    "i don't",
    "i do not",
    "unfortunately",
    "i'm a",
    "i am a",
    "i'm an ai",
)
SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?][\"')]*(?=\s|$)")
MARKUP = re.compile(r"\*\*|^#|^\s*[-*]\s|^\s*\d+[.)]\s|[<>{}\[\]|\\]|https?:", re.MULTILINE)
ABOUT_ITSELF = re.compile(
    r"the story (begins|starts|is|follows|tells|shows)|this (classic|story|tale|scene|fable)"
    r"|\ba (\w+ )?tale of|\btale\b.*:|(fairy|bedtime|short|mini) (tale|story)"
    r"|the sentence|sentences|concise|grammar|picture book|main character"
    r"|\b(here's|here is|sure|certainly|revised|rewritten|ai|hello|aw)\b"
    r"|i'm here to|my name is|\bi (made|added|removed)\b",
    re.IGNORECASE,
)
MIN_DISTINCT = 0.55  # share of distinct words below which a response counts as repetitive


def words(text: str) -> list[str]:
    """The lower-case words of a text, punctuation left out."""
    return re.findall(r"[a-z0-9']+", text.lower())


def ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    """All word n-grams of a text, in order."""
    found = words(text)
    return [tuple(found[at : at + size]) for at in range(len(found) - size + 1)]


def template_words() -> set[str]:
    """Every word of every prompt template: words that say nothing about the topic."""
    groups = [group for split in SPLITS for group in INSTRUCTION_TEMPLATES[split].values()]
    texts = [text for group in [*STORY_TEMPLATES.values(), *groups] for text in group]
    return set(words(" ".join(texts)))


def is_off_topic(prompt: str, response: str, common: frozenset[str] = frozenset(template_words())) -> bool:
    """Whether a response takes up fewer than two (or all, if fewer) of the topic words of its prompt."""
    topic = {word[:4] for word in words(prompt) if len(word) > 2 and word not in common}
    return len(topic & {word[:4] for word in words(response)}) < min(2, len(topic))


def is_repetitive(response: str) -> bool:
    """Whether a 4-gram occurs more than twice, or too few of the words are distinct."""
    found = words(response)
    return max(Counter(ngrams(response, 4)).values(), default=0) > 2 or len(set(found)) < MIN_DISTINCT * len(found)


def story_prompts(split: str, rng: random.Random) -> Iterator[str]:
    """Every character meets every event once, in random order, each time in a template drawn at random."""
    pairs = list(product(CHARACTERS[split], EVENTS[split]))
    rng.shuffle(pairs)
    for who, event in pairs:
        yield rng.choice(STORY_TEMPLATES[split]).format(who=who, event=event)


def instruction_prompts(split: str, rng: random.Random) -> Iterator[str]:
    """Every template of a group with every topic of that group, in random order."""
    groups = INSTRUCTION_TEMPLATES[split].items()
    pairs = [pair for name, group in groups for pair in product(group, INSTRUCTION_TOPICS[split][name])]
    rng.shuffle(pairs)
    for template, topic in pairs:
        yield template.format(topic=topic)


def is_near_duplicate(prompt: str, kept: Sequence[str]) -> bool:
    """Whether the word pairs of a prompt are (nearly) those of one already kept."""
    new = set(ngrams(prompt, 2))
    return any(len(new & old) >= NEAR_DUPLICATE * len(new | old) for old in (set(ngrams(k, 2)) for k in kept))


def build_prompts(split: str, kind: str, seed: int, counts: Counter[str]) -> list[str]:
    """The candidate prompts of one split and kind: right length, no exact or near duplicates."""
    make = story_prompts if kind == "story" else instruction_prompts
    kept: list[str] = []
    for prompt in make(split, random.Random(f"{seed}-{split}-{kind}")):
        if len(kept) == int(WANTED[split, kind] * SURPLUS):
            break
        if not PROMPT_WORDS[0] <= len(prompt.split()) <= PROMPT_WORDS[1]:
            counts["prompt: length"] += 1
        elif is_near_duplicate(prompt, kept):
            counts["prompt: duplicate or near duplicate"] += 1
        else:
            kept.append(prompt)
    return kept


def cut_to_sentence(text: str) -> str:
    """The text up to the last sentence end outside double quotes; empty when there is none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text) if text.count('"', 0, match.end()) % 2 == 0]
    return text[: ends[-1]] if ends else ""


def response_fault(prompt: str, response: str, n_tokens: int) -> str | None:
    """The first reason to reject a response, or None."""
    checks = {
        "empty": not response,
        "token length": not RESPONSE_TOKENS[0] <= n_tokens <= RESPONSE_TOKENS[1],
        "no sentence end": response != cut_to_sentence(response),
        "not ASCII": not response.isascii(),
        "list or markup": bool(MARKUP.search(response)),
        "refusal": response.lower().startswith(REFUSALS),
        "repetitive": is_repetitive(response),
        "talks about itself": bool(ABOUT_ITSELF.search(response)),
        "off topic": is_off_topic(prompt, response),
        "copies the prompt": bool(set(ngrams(prompt, 8)) & set(ngrams(response, 8))),
    }
    return next((name for name, failed in checks.items() if failed), None)


def finish(tokenizer: Any, ids: list[int]) -> tuple[str, bool]:
    """Decode sampled ids; True when the model ended the text itself and nothing had to be cut."""
    ended = tokenizer.eos_token_id in ids
    ids = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
    short = ids[: RESPONSE_TOKENS[1]]
    text = tokenizer.decode(short, skip_special_tokens=True).strip()
    complete = cut_to_sentence(text)
    return complete, ended and short == ids and complete == text


def with_template(tokenizer: Any, prompt: str) -> str:
    """The prompt as the teacher sees it: the model's chat template with its own default system turn."""
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


@torch.inference_mode()
def sample(model: Any, tokenizer: Any, prompts: Sequence[str], seed: int) -> list[list[int]]:
    """One sampled continuation for each prompt, as token ids without the prompt."""
    texts = [with_template(tokenizer, prompt) for prompt in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    torch.manual_seed(seed)
    output = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=True,
        top_k=0,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [row.tolist() for row in output[:, batch["input_ids"].shape[1] :]]


class Answers:
    """Accepted responses by prompt, and a count of what was rejected and why."""

    def __init__(self, tokenizer: Any, counts: Counter[str]) -> None:
        self.tokenizer, self.counts = tokenizer, counts
        self.accepted: dict[str, str] = {}
        self.natural: set[str] = set()
        self._seen: set[tuple[str, ...]] = set()

    def offer(self, prompt: str, ids: list[int]) -> None:
        """Accept or reject one sampled response."""
        response, natural = finish(self.tokenizer, ids)
        fault = response_fault(prompt, response, len(self.tokenizer.encode(response, add_special_tokens=False)))
        if fault is None and tuple(words(response)) in self._seen:
            fault = "duplicate response"
        self.counts[f"response: {fault or 'accepted'}"] += 1
        if fault is None:
            self._accept(prompt, response, natural)

    def _accept(self, prompt: str, response: str, natural: bool) -> None:
        self.accepted[prompt] = response
        self._seen.add(tuple(words(response)))
        self.natural |= {prompt} if natural else set()


def answer_all(model: Any, answers: Answers, prompts: Sequence[str], seed: int) -> None:
    """Sample every prompt until it has an accepted response or its attempts are used up."""
    for attempt in range(ATTEMPTS):
        pending = [prompt for prompt in prompts if prompt not in answers.accepted]
        for start in range(0, len(pending), BATCH):
            batch, began = pending[start : start + BATCH], time.monotonic()
            sampled = sample(model, answers.tokenizer, batch, seed + 10_000 * attempt + start)
            for prompt, ids in zip(batch, sampled, strict=True):
                answers.offer(prompt, ids)
            print(
                f"attempt {attempt} {start + len(batch)}/{len(pending)} accepted {len(answers.accepted)} "
                f"{time.monotonic() - began:.1f}s",
                flush=True,
            )


def write_split(out: Path, split: str, prompts: dict[str, list[str]], answers: Answers, seed: int) -> Counter[str]:
    """Write the wanted number of answered prompts of a split in random order; return how they ended."""
    rows = []
    for kind, candidates in prompts.items():
        answered = [prompt for prompt in candidates if prompt in answers.accepted]
        rows += [(prompt, kind) for prompt in answered[: WANTED[split, kind]]]
    random.Random(f"{seed}-{split}-order").shuffle(rows)
    with (out / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for number, (prompt, kind) in enumerate(rows, 1):
            row = {
                "id": f"starter-{split}-{number:04d}",
                "prompt": prompt,
                "response": answers.accepted[prompt],
                "kind": kind,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Counter("ended by EOS" if prompt in answers.natural else "cut back" for prompt, _ in rows)


def make(model_dir: Path, out: Path, seed: int) -> None:
    """Build the prompts, sample the responses, write both files, print the counts."""
    began, counts = time.monotonic(), Counter[str]()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    prompts = {
        split: {kind: build_prompts(split, kind, seed, counts) for kind in ("story", "instruction")} for split in SPLITS
    }
    candidates = [prompt for split in SPLITS for group in prompts[split].values() for prompt in group]
    answers = Answers(tokenizer, counts)
    answer_all(model, answers, candidates, seed)
    out.mkdir(parents=True, exist_ok=True)
    endings = {split: dict(write_split(out, split, prompts[split], answers, seed)) for split in SPLITS}
    print(
        json.dumps(
            {
                "candidate prompts": len(candidates),
                "counts": dict(sorted(counts.items())),
                "endings": endings,
                "seconds": round(time.monotonic() - began),
            },
            indent=2,
        )
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of one data file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def describe(rows: list[dict[str, str]], tokenizer: Any) -> dict[str, Any]:
    """Counts, token lengths and faults of one file."""

    def size(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    prompt_sizes = [size(with_template(tokenizer, row["prompt"])) for row in rows]
    sizes = [size(row["response"]) for row in rows]
    faults = [response_fault(row["prompt"], row["response"], n) for row, n in zip(rows, sizes, strict=True)]
    return {
        "rows": len(rows),
        "kinds": dict(Counter(row["kind"] for row in rows)),
        "distinct prompts": len({tuple(words(row["prompt"])) for row in rows}),
        "distinct responses": len({tuple(words(row["response"])) for row in rows}),
        "prompt tokens with template (mean, max)": [round(mean(prompt_sizes), 1), max(prompt_sizes)],
        "response tokens (min, mean, max)": [min(sizes), round(mean(sizes), 1), max(sizes)],
        "rows that fail a filter": sum(fault is not None for fault in faults),
    }


def overlap(train: list[dict[str, str]], heldout: list[dict[str, str]], field: str) -> dict[str, Any]:
    """Held-out rows that share a word 8-gram with any train row in a field, and exact duplicates."""
    known = {gram for row in train for gram in ngrams(row[field], 8)}
    texts = {tuple(words(row[field])) for row in train}
    shared = sum(not known.isdisjoint(ngrams(row[field], 8)) for row in heldout)
    same = sum(tuple(words(row[field])) in texts for row in heldout)
    return {
        "rows sharing an 8-gram": shared,
        "share": round(shared / len(heldout), 4),
        "exact duplicates": same,
    }


def pieces(split: str) -> set[str]:
    """Every template and topic of a split."""
    groups, topics = INSTRUCTION_TEMPLATES[split], INSTRUCTION_TOPICS[split]
    lists = [STORY_TEMPLATES[split], CHARACTERS[split], EVENTS[split], *groups.values(), *topics.values()]
    return {piece for group in lists for piece in group}


def check(model_dir: Path, out: Path) -> None:
    """Print every figure that PROVENANCE.md states about the two files."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    train, heldout = read_rows(out / "train.jsonl"), read_rows(out / "heldout.jsonl")
    report = {
        "train": describe(train, tokenizer),
        "heldout": describe(heldout, tokenizer),
        "overlap of prompts": overlap(train, heldout, "prompt"),
        "overlap of responses": overlap(train, heldout, "response"),
        "templates and topics in both splits": len(pieces("train") & pieces("heldout")),
    }
    print(json.dumps(report, indent=2))


def main() -> None:
    """Read the command line and make or check the data."""
    parser = argparse.ArgumentParser(description="Make or check the starter data of potstill.")
    parser.add_argument("--model", type=Path, required=True, help="teacher folder (weights and tokenizer)")
    parser.add_argument("--out", type=Path, required=True, help="folder of train.jsonl and heldout.jsonl")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--check", action="store_true", help="measure the files instead of making them")
    args = parser.parse_args()
    if args.check:
        check(args.model, args.out)
    else:
        make(args.model, args.out, args.seed)


if __name__ == "__main__":
    main()
