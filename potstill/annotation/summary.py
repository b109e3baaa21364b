"""The figures of a card in lines, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def summary(card: dict[str, Any], out: Path, review: Path | None) -> str:
    """The card's figures in lines."""
    counts, rows = card["counts"], card["rows"]
    lines = {"rows": f"{rows['asked']} asked about, {rows['human']} of people kept"}
    if rows["quarantined"]:
        lines["rows that cannot be used"] = str(rows["quarantined"])
    if rows["left_out_as_shots"]:
        lines["rows that are shots"] = f"{len(rows['left_out_as_shots'])}, not asked about"
    lines["mode"] = card["settings"]["mode"]
    lines["annotations"] = f"{counts['annotations']}, of which {counts['kept']} are kept"
    lines |= {f"unread: {why}": str(num) for why, num in counts["unread"].items()}
    for step in counts["filters"]:
        lines[step["name"]] = f"{step['dropped']} dropped, {step['changed']} changed"
    if told := counts["agreement"]:
        share = f"{told['share']:.3f} [{told['low']:.3f}, {told['high']:.3f}]"
        lines["labels that are gold"] = f"{share}, {told['same']} of {told['of']}"
    if told := card["review"]:
        became = f"{told['edited']} edited, {told['brought_back']} brought back, {told['dropped']} dropped"
        lines["reviewed"] = f"{told['decisions']} decisions: {became}"
        lines |= {f"brought back from {name}": str(num) for name, num in told["brought_back_from"].items()}
        if told["kept_as_seen"]:
            lines["kept as a person saw it"] = f"{told['kept_as_seen']}, which the filters would change"
    lines["seconds"] = f"{card['seconds']:.1f}"
    if counts["annotations"] and not counts["kept"]:
        lines["nothing is kept"] = "the filters left nothing to train on: other --filters need no asking again"
    width = max(map(len, lines))
    wrote = f"wrote {out}" + (f" and {review}, to decide in and take over with --apply" if review else "")
    return "\n".join([*(f"{name:{width}}  {value}" for name, value in lines.items()), wrote])
