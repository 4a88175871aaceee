"""Docstrings are written for readers of the source, with a little reStructuredText; the site speaks Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE_MATH = re.compile(r":math:`([^`]+)`", re.DOTALL)
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")
_BLOCK = re.compile(
    r"^(?P<pad>[ ]*)\.\. math::[ ]?(?P<first>[^\n]*)\n(?P<rest>(?:(?P=pad)[ ]+\S[^\n]*\n|[ ]*\n(?=(?P=pad)[ ]+\S))*)", re.MULTILINE
)
_RULE = re.compile(r"^\s*=+( +=+)+\s*$")


def to_markdown(text: str) -> str:
    """The same text in Markdown: roles, displayed equations and simple tables are translated, the rest stays as it is."""
    text = _BLOCK.sub(_display, text + "\n")
    text = _ROLE_MATH.sub(lambda match: rf"\({' '.join(match[1].split())}\)", text)
    text = _ROLE.sub(r"`\1`", text)
    text = re.sub(r"\n{3,}", "\n\n", text.replace("``", "`"))
    return _tables(text).rstrip("\n")


def _display(match: re.Match[str]) -> str:
    lines = " ".join(line.strip() for line in (match["first"], *match["rest"].splitlines()) if line.strip())
    return f"\n{match['pad']}\\[{lines}\\]\n\n"


def _tables(text: str) -> str:
    lines, out = text.split("\n"), []
    while lines:
        line = lines.pop(0)
        if not _RULE.match(line):
            out.append(line)
            continue
        starts = [match.start() for match in re.finditer(r"=+", line)]
        rules, rows = 1, []
        while lines and rules < 3:
            row = lines.pop(0)
            if _RULE.match(row):
                rules += 1
            else:
                ends = (*starts[1:], len(row))
                rows.append([row[start:end].strip() for start, end in zip(starts, ends, strict=True)])
        pad = " " * starts[0]
        head, *body = [pad + "| " + " | ".join(cells) + " |" for cells in rows]
        out += [head, pad + "|" + " --- |" * len(starts), *body]
    return "\n".join(out)


class Markdown(griffe.Extension):
    """Hands every docstring of the reference pages to `to_markdown`."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for each module, class, function and attribute that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
