"""Reports in a real browser: what is hostile runs in a page without escaping, and nowhere else.

Every page is loaded in a frame with ``alert`` and its like trapped before the page begins; the
frame tells how often the trap was sprung, and which elements and attributes could still spring it.
Pages are loaded with their content security policy and without it, as each must hold alone.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import NamedTuple

import pytest

from genwarden.reports import html
from genwarden.reports.html import page_environment

from .hostile_strings import packed
from .test_hostile_strings import PAGES, page_of

_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(_BROWSER is None, reason="no chromium on this machine")

_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

#: Before the page: what a script would call. Behind it: what was called, and what is still alive.
_TRAP = """<script>
let fired = 0;
for (const name of ["alert", "confirm", "prompt", "print", "open"])
  window[name] = () => { fired++; };
const alive = () => [...document.querySelectorAll("*")].filter(e =>
  /^(script|iframe|object|embed|base|form|link|input|button|video|audio|source|template)$/i
    .test(e.localName) && !e.hasAttribute("data-trap")
  || e.localName === "meta" && /refresh/i.test(e.httpEquiv)
  || [...e.attributes].some(a =>
       /^on/i.test(a.name) || /^\\s*(javascript|vbscript|data:text)/i.test(a.value))
).length;
const tell = () =>
  parent.postMessage([FRAME, fired, alive(), document.body.textContent.length], "*");
addEventListener("load", () => { for (const ms of [200, 1200, 2400]) setTimeout(tell, ms); });
document.currentScript.setAttribute("data-trap", "");
</script>"""

_OUTER = """<!doctype html><title>frames</title><script>
const told = {};
addEventListener("message", e => { if (Array.isArray(e.data)) told[e.data[0]] = e.data.slice(1); });
addEventListener("load", () => setTimeout(() => { document.title = JSON.stringify(told); }, 3000));
</script>"""


class Seen(NamedTuple):
    """What a frame told: calls trapped, elements alive, characters shown."""

    fired: int
    alive: int
    shown: int


def visit(folder: Path, pages: dict[str, str]) -> dict[str, Seen]:
    """Load every page in a frame of one browser; which of them told what."""
    frames = []
    for name, page in pages.items():
        trap = _TRAP.replace("FRAME", json.dumps(name))
        head, tag, rest = page.partition("<head>")
        assert tag, f"{name} has no head"
        (folder / f"{name}.html").write_text(head + tag + trap + rest, encoding="utf-8")
        # Layout is what costs; without it what waits for focus or for drawing is only counted.
        hidden = "" if name.startswith("control-") else ' style="display:none"'
        frames.append(f'<iframe src="{name}.html"{hidden}></iframe>')
    outer = folder / "frames.html"
    outer.write_text(_OUTER + "".join(frames), encoding="utf-8")
    assert _BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += ["--no-first-run", "--disable-background-networking", "--disable-extensions"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [_BROWSER, *options, "--virtual-time-budget=20000", "--dump-dom", outer.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    return {name: Seen(*told) for name, told in json.loads(unescape(title[1])).items()}


def test_hostile_names_run_nowhere_and_would_run_without_escaping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = packed()
    pages = {}
    for kind in PAGES:
        for number, text in enumerate(packs):
            page = page_of(kind, text)
            assert _POLICY.search(page)
            # All names in audits; one in four in the pages made of the same parts.
            if kind == "audit" or number % 4 == 0:
                pages[f"{kind}-{number}-escaped"] = _POLICY.sub("", page)
    pages["audit-policy-escaped"] = PAGES["audit"](packs[-1])
    bare = page_environment().overlay(autoescape=False)
    monkeypatch.setattr(html, "page_environment", lambda: bare)
    lively = [n for n, text in enumerate(packs) if text.count("onerror=alert(1)") > 10][:2]
    for number in lively:
        page = PAGES["audit"](packs[number])
        pages[f"control-{number}"] = _POLICY.sub("", page)
        pages[f"policy-{number}"] = page
    seen = visit(tmp_path, pages)
    assert set(seen) == set(pages)
    assert len(lively) == 2
    for name, told in seen.items():
        if name.startswith("control-"):
            assert told.fired > 0, "the trap does not work, or the names are harmless"
            assert told.alive > 0
        else:  # without escaping the policy still stops what runs
            assert told.fired == 0, name
        if name.endswith("-escaped"):
            assert told.alive == 0, name
            assert told.shown > 2_000, name
