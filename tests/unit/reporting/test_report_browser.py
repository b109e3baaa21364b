"""The report in a real browser: no script runs, nothing is loaded, nothing is complained about."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from potstill.reporting import report
from potstill.reporting.report import write_report
from tests.unit.reporting.hostile import PAYLOADS, hostile_run, intrusions, missing_payloads

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # should a payload get through, its request goes nowhere
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: chromium, chromium-browser or google-chrome")


def opened(file: Path, profile: Path) -> tuple[str, list[str]]:
    """The page as the browser has it, and what it said on its console. A dialog would keep it open: a timeout."""
    assert BROWSER
    command = [BROWSER, *OPTIONS, f"--user-data-dir={profile}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_payloads_are_text(tmp_path: Path) -> None:
    dom, console = opened(write_report(hostile_run(tmp_path)), tmp_path / "profile")
    assert console == []
    assert intrusions(dom) == []
    assert missing_payloads(dom) == []


def test_the_policy_stops_what_escaping_would_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also shows that the test above can fail: without escaping, the browser finds elements and complains.

    Not with every payload: a <meta> that leads elsewhere is one that no policy stops.
    """
    monkeypatch.setattr(report, "environment", partial(report.environment, autoescape=False))
    run = hostile_run(tmp_path, "\n".join((PAYLOADS[0], PAYLOADS[2], PAYLOADS[3])))
    dom, console = opened(write_report(run), tmp_path / "profile")
    assert "element <script>" in intrusions(dom)
    assert any("Content Security Policy" in line for line in console)
    assert "<title>pwned" not in dom
