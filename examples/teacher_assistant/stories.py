"""Rows of TinyStories: the first sentence is the prompt, and what follows the response.

    python examples/teacher_assistant/stories.py OUT

writes OUT/train.jsonl and OUT/valid.jsonl from $POTSTILL_DATA/tinystories. A story of one sentence is left out.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

DATA = Path(os.environ.get("POTSTILL_DATA", "../shared/data"))
END = re.compile(r"(?<=[.!?])\"?\s+")


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid"):
        lines = (DATA / "tinystories" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        stories = [json.loads(line)["text"].strip() for line in lines]
        rows = [row for at, story in enumerate(stories) if (row := halved(f"{name}-{at}", story))]
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def halved(name: str, story: str) -> dict[str, str] | None:
    """A story as a row: its first sentence, and the rest."""
    if not (end := END.search(story)):
        return None
    return {"id": name, "prompt": story[: end.end()].rstrip(), "response": story[end.end() :]}


if __name__ == "__main__":
    main()
