"""Read the page's style and script, which are texts of this package.

In: nothing but the package's own files, read once. Out: text. It never touches anything outside the package.
"""

from __future__ import annotations

from importlib.resources import files


def text(name: str) -> str:
    """One file of `scripts/` as it is sent."""
    return files("llmfleet.top.scripts").joinpath(name).read_text(encoding="utf-8")
