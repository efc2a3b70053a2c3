"""The page in a real browser: `python tests/unit/top/browser.py`, wherever a Chromium is installed.

In: a Chromium on the path. Out: status 0 when its script ran under its own policy, drew every figure of a recorded
router, made no element of a model's name and loaded nothing from elsewhere; 1 with what was missing; 2 without a
browser. It is no part of the check, which must not depend on a browser.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from aiohttp import web

from llmfleet.top.app import add_page

RECORDED = Path(__file__).parent / "recorded"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = '<img src="x" onerror="document.title=1">'
SIZES = ("390,844", "1280,900")
SECONDS = 60


def fleet() -> dict[str, Any]:
    """What was recorded, with one model that somebody gave an unkind name."""
    found: dict[str, Any] = json.loads((RECORDED / "fleet.json").read_text(encoding="utf-8"))
    found["models"][HOSTILE] = found["models"].pop("qwen")
    return found


async def dump(browser: str, url: str, size: str) -> tuple[str, str]:
    """The document after its script ran, and what the browser complained about."""
    with tempfile.TemporaryDirectory() as profile:
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={profile}")
        ask = ("--virtual-time-budget=6000", f"--window-size={size}", "--dump-dom", url)
        process = await asyncio.create_subprocess_exec(
            browser, *flags, *ask, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(SECONDS):
                out, said = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
    return out.decode(), said.decode(errors="replace")


def faults(document: str, said: str, asked: set[str]) -> list[str]:
    """Everything that is not as it should be."""
    found = [line for line in said.splitlines() if "CONSOLE" in line]
    for text in ("llama", "2/2", "127.0.0.1-18101", "12 connections", "&lt;img src="):
        if text not in document:
            found.append(f"not drawn: {text}")
    if re.search(r"<img|<title>1", document):
        found.append("a model's name became markup")
    if strange := asked - {"/", "/live", "/favicon.ico"}:
        found.append(f"asked for {sorted(strange)}")
    return found


async def main(browser: str) -> int:
    """Serve, look in each size, stop."""
    asked: set[str] = set()

    @web.middleware
    async def note(request: web.Request, handler: Any) -> web.StreamResponse:
        asked.add(request.path)
        answer: web.StreamResponse = await handler(request)
        return answer

    app = web.Application(middlewares=[note])
    add_page(app, lambda: (fleet(), ()))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        found = [f"{size}: {fault}" for size in SIZES for fault in faults(*await dump(browser, url, size), asked)]
    finally:
        await runner.cleanup()
    print("\n".join(found) or f"the page is whole in {browser}, in {len(SIZES)} sizes")
    return 1 if found else 0


if __name__ == "__main__":
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        print(f"no browser: install one of {', '.join(BROWSERS)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(asyncio.run(main(path)))
