"""The page of a comparison in a real browser: nothing runs, nothing is loaded, all of it can be read.

The page itself may run no script, so what the browser makes of it is asked from a page around it.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from potstill.reporting import report
from potstill.reporting.comparison import Comparison
from potstill.reporting.comparison.page import write_page
from tests.unit.reporting import test_report_browser as browser
from tests.unit.reporting.fake_comparison import FIRST, comparison, hostile_comparison, measure, renamed, table
from tests.unit.reporting.hostile import PAYLOADS, TEXT, intrusions, missing_payloads

pytestmark = browser.pytestmark
PHONE, DESK, SCROLL_BAR = 375, 1280, 20  # CSS pixels
LIGHT, DARK = 1, 0  # as --blink-settings has them
AROUND = """<!doctype html><meta charset="utf-8"><iframe src="{page}" width="{width}" height="900"></iframe><pre></pre>
<script>
const channel = value => {{ value /= 255; return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4 }}
const parts = colour => (colour.match(/[\\d.]+/g) || []).map(Number)
const light = colour => {{ const [r, g, b] = parts(colour).map(channel); return 0.2126 * r + 0.7152 * g + 0.0722 * b }}
const clear = colour => parts(colour).length > 3 && parts(colour)[3] === 0
onload = () => {{
  const inner = document.querySelector("iframe").contentDocument, view = inner.defaultView
  const ground = element => {{
    for (; element; element = element.parentElement) {{
      const colour = view.getComputedStyle(element).backgroundColor
      if (!clear(colour)) return colour
    }}
  }}
  const worst = {{ contrast: 99, at: "" }}
  for (const element of inner.body.querySelectorAll("*")) {{
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue
    const style = view.getComputedStyle(element), ink = element.closest("svg") ? style.fill : style.color
    const pair = [light(ink), light(ground(element))].sort((a, b) => b - a)
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05)
    if (contrast < worst.contrast) Object.assign(worst, {{ contrast, at: element.tagName + "." + element.className }})
  }}
  document.querySelector("pre").textContent = JSON.stringify({{
    width: inner.documentElement.clientWidth,
    needs: inner.documentElement.scrollWidth,
    paper: light(view.getComputedStyle(inner.body).backgroundColor),
    loaded: view.performance.getEntriesByType("resource").length,
    ...worst,
  }})
}}
</script>"""


def seen(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, width: int, scheme: int = LIGHT
) -> dict[str, Any]:
    """What the browser makes of the page at this width: the width it needs, its worst contrast, what it loaded."""
    allowed = ("--allow-file-access-from-files", f"--blink-settings=preferredColorScheme={scheme}")
    monkeypatch.setattr(browser, "OPTIONS", (*browser.OPTIONS, *allowed))
    around = folder / "around.html"
    around.write_text(AROUND.format(page=page.as_uri(), width=width), encoding="utf-8")
    dom, console = browser.opened(around, folder / "profile")
    assert console == []
    found = re.search(r"<pre>(\{.*?\})</pre>", dom)
    assert found, dom[-2000:]
    answer: dict[str, Any] = json.loads(html.unescape(found[1]))
    return answer


def crowded() -> Comparison:
    """A hostile comparison with twelve models of long names, which cannot be broken at a space."""
    long = [replace(FIRST, key=f"{i}:student", name=f"{i:02}" + "n" * 198) for i in range(12)]
    wide = measure(dict.fromkeys([e.key for e in long], 1.0), between={}, name="m" * 200, told="t" * 500)
    made = table(wide, entries=(*renamed("x" * 200)[:2], *long), baseline=long[0])
    return replace(hostile_comparison("w" * 300), table=made)


def test_payloads_are_text(tmp_path: Path) -> None:
    file = write_page(hostile_comparison(TEXT), tmp_path / "compare.html", title=TEXT)
    dom, console = browser.opened(file, tmp_path / "profile")
    assert console == []
    assert intrusions(dom) == []
    assert missing_payloads(dom) == []


def test_the_policy_stops_what_escaping_would_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also shows that the test above can fail; not with every payload, for no policy stops a <meta> that leads away."""
    monkeypatch.setattr(report, "environment", partial(report.environment, autoescape=False))
    made = hostile_comparison("\n".join((PAYLOADS[0], PAYLOADS[2], PAYLOADS[3])))
    dom, console = browser.opened(write_page(made, tmp_path / "compare.html", title="x"), tmp_path / "profile")
    assert "element <script>" in intrusions(dom)
    assert any("Content Security Policy" in line for line in console)
    assert "<title>pwned" not in dom


@pytest.mark.parametrize(("width", "scheme"), [(PHONE, DARK), (DESK, LIGHT)])
def test_it_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, scheme: int) -> None:
    file = write_page(comparison(), tmp_path / "compare.html", title="two runs")
    found = seen(file, tmp_path, monkeypatch, width=width, scheme=scheme)
    assert (found["paper"] > 0.5) == (scheme == LIGHT)
    assert found["contrast"] >= 4.5, found["at"]  # WCAG 2.2, 1.4.3
    assert found["loaded"] == 0
    assert width - SCROLL_BAR <= found["width"] <= width
    assert found["needs"] <= found["width"]


def test_only_tables_scroll_sideways_whatever_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_page(crowded(), tmp_path / "compare.html", title="t" * 300)
    found = seen(file, tmp_path, monkeypatch, width=PHONE)
    assert found["needs"] <= found["width"]
