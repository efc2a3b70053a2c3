"""One read-only page that shows a router live, for those without Grafana.

In: what the router knows. Out: the page, the headers it must be served with, and the object that its script asks for.
The page is one text without any external asset; its content security policy allows exactly its own style and script,
by their hashes, and requests to where it came from. The script writes text only, never markup, because models' names
are whatever somebody called them. It serves nothing: `app.py` does.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final

from llmfleet.top.live import Model, read_live
from llmfleet.top.programs import text
from llmfleet.top.samples import Samples

STYLE: Final = text("page.css.txt")
SCRIPT: Final = text("page.js.txt")


def digest(source: str) -> str:
    """The source expression by which a policy allows this very text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        f"style-src {digest(STYLE)}",
        f"script-src {digest(SCRIPT)}",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
PAGE: Final = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>llmfleet router</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>llmfleet</h1><p id="router">asking the router</p></header>
<main id="models"></main>
<footer><p>What this router sees, every two seconds.
Why a fleet has its size: <code>llmfleet explain</code>.</p></footer>
<noscript><p>This page asks the router by a script.
Without it: <code>/fleet</code> and <code>/metrics</code>.</p></noscript>
<script>{SCRIPT}</script>
</body>
</html>
"""


def live_json(fleet: Mapping[str, Any], samples: Samples) -> dict[str, Any]:
    """What the script asks for: the moment, and counters of which it takes differences."""
    live = read_live(fleet, samples)
    return {
        "pod": str(fleet.get("pod", "")),
        "generation": fleet.get("generation", 0),
        "draining": bool(live.draining),
        "connections": live.connections,
        "models": [model_json(model) for model in live.models],
    }


def model_json(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "state": "panic" if model.panic else model.state,
        "ready": model.ready,
        "inFlight": model.in_flight,
        "slots": model.slots,
        "waiting": model.waiting,
        "requests": model.requests,
        "bad": model.bad,
        "promptTokens": model.prompt_tokens,
        "outputTokens": model.output_tokens,
        "ttft": [[None if edge == float("inf") else edge, model.ttft[edge]] for edge in sorted(model.ttft)],
        "engines": [
            {
                "name": engine.instance,
                "role": engine.role,
                "state": engine.state,
                "inFlight": engine.in_flight,
                "slots": engine.slots,
                "ttft": engine.ttft,
            }
            for engine in model.engines
        ],
    }
