"""Text that tries to be more than text, in every place a report takes text from, and a reader that notices."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from potstill.reporting.text import clean_text
from potstill.run import Run
from tests.unit.reporting.fake_runs import COST, DATA, ENVIRONMENT, RECIPE, STUDENT, sample, write_lines, write_run

PAYLOADS = (
    '<script id="pwned">document.title = "pwned"; alert(1)</script>',
    "</script></style></title></pre></textarea><script>alert(2)</script>",
    '<svg id="pwned" onload="alert(3)"><animate onbegin="alert(4)" attributeName="x"/></svg>',
    '<img id="pwned" src="https://evil.example/pixel.png" onerror="alert(5)">',
    '<iframe id="pwned" src="javascript:alert(6)"></iframe><base href="https://evil.example/">',
    '<style id="pwned">@import "https://evil.example/x.css"; body { display: none }</style>',
    '<link rel="stylesheet" href="https://evil.example/x.css"><form id="pwned"><button>go</button></form>',
    '"\' onmouseover=\'alert(7)\' id="pwned" x="',
    '<meta http-equiv="refresh" content="0;url=https://evil.example/">',
    "[a link](javascript:alert(8)) ![an image](https://evil.example/pixel.png) `` ` `` | *x* | # y",
    "line\u2028separator\u2029and </script\u2028>",
    "\x1b[31mred\x1b[0m \x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\ \x1b]52;c;ZXZpbA==\x07clip \x9b2Jboard",
    "{{ 7*7 }} {% for x in y %} {# gone #} ${7*7} #{7*7} <%= 7*7 %>",
    "&lt;b id=&quot;pwned&quot;&gt; &#60;script&#62; --> ]]> <!-- <![CDATA[ x",
    "nul \x00 half \ud800 turned \u202etxt.exe",
)
TEXT = "\n".join(PAYLOADS)
NAME = '<img id="pwned" onerror=alert(9)> {{ 7*7 }} | `x` \x1b[31m\'"'  # of a folder: no slash
METRIC = '"><script id="pwned">alert(10)</script><svg id="pwned" onload=alert(11)> {{ 7*7 }}\x1b[31m'
PLACES = ("prompt", "reference", "answer", "id", "recipe", "data", "environment", "student", "metric", "name")


def hostile_run(folder: Path, text: str = TEXT) -> Run:
    """A run with the payloads in every place, each after the name of its place."""
    run = write_run(folder / NAME)
    run.recipe_file.write_text(_recipe(text), encoding="utf-8", errors="replace")
    run.write("data", DATA | {"path": f"data {text}", text: 1, "splits": {text: {text: 1}, "b": {text: 2}}})
    run.write("env", ENVIRONMENT | {"platform": f"environment {text}"})
    run.write("cost", COST | {f"cost {text}": text})
    run.write("student", STUDENT | {"from": f"student {text}"})
    metrics = [{"step": 1, "train/loss": 2.0, f"train/{METRIC}": 1.0, f"validation/{METRIC}": 1.0}]
    write_lines(run.metrics_file, metrics)
    given = sample(0, f"prompt {text}") | {"id": f"id {text}", "reference": f"reference {text}"}
    outputs = {model: {"greedy": f"answer {text}", "sampled": text} for model in given["outputs"]}
    write_lines(run.samples_file, [given | {"outputs": outputs | {METRIC: {"greedy": text}}}])
    return run


def _recipe(text: str) -> str:
    """A recipe that can be read: the payloads are in a comment, its method's name and its data's path."""
    comment = "".join(f"# {line}\n" for line in f"recipe {clean_text(text)}".splitlines())
    value = json.dumps(clean_text(text))
    return comment + RECIPE.replace("method: kd", f"method: {value}").replace("path: starter", f"path: {value}")


class Page(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, and its text."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._text.append(" ")

    def handle_data(self, data: str) -> None:
        self._text.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self._text).split())


FORBIDDEN = ("a", "animate", "base", "button", "embed", "form", "iframe", "img", "link", "object", "script", "textarea")


def intrusions(html: str) -> list[str]:
    """Everything in a page that only a payload could have put there; empty where all of them stayed text."""
    found = []
    for tag, attributes in Page(html).elements:
        if tag in FORBIDDEN:
            found.append(f"element <{tag}>")
        for name, content in attributes.items():
            if name.startswith("on") or content == "pwned":
                found.append(f"attribute {name} of <{tag}>")
            if name in ("href", "xlink:href", "src", "srcset", "action") and not (content or "").startswith("#"):
                found.append(f"reference to {content}")
    return found


def missing_payloads(html: str) -> list[str]:
    """The payloads that are not there to be read."""
    text = Page(html).text
    return [payload for payload in PAYLOADS if " ".join(clean_text(payload).split()) not in text]
