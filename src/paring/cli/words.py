"""Docstrings as a terminal shows them."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """A piece of a docstring on one line, without its markup."""
    return unmarked(" ".join(text.split()))


def unmarked(text: str) -> str:
    """A docstring without its markup, its lines as they are."""
    text = re.sub(r":\w+(?::\w+)*:`~?([^`]*)`", r"\1", text).replace("``", "")
    text = re.sub(r"\\(?:text|mathrm|mathcal)\{(.*?)\}", r"\1", text)
    text = re.sub(r"\\sqrt\s*(?:\\([a-z]+)|(\w)|\{(.*?)\})", lambda found: f"sqrt({found[1] or found[2] or found[3]})", text)
    text = re.sub(r"\\(ge|le)\b", lambda found: {"ge": ">=", "le": "<="}[found[1]], text)
    return re.sub(r"\\([A-Za-z]+)", r"\1", text).replace("\\,", " ")
