"""Figures by matplotlib as SVG that takes its colours from the page and says the same bytes for the same record.

A figure is drawn in stand-in colours, one for each role; in the SVG they become ``var(--role)``, so one drawing serves
light and dark. Text stays text, in the font of the page.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree as ET

import matplotlib.style
from markupsafe import Markup
from matplotlib.figure import Figure

from paring.report.words import clean

SERIES = 6
HEAT = 8

ROLES = (
    "ink", "muted", "rule", "warn",
    *(f"series-{index}" for index in range(1, SERIES + 1)),
    *(f"heat-{index}" for index in range(HEAT + 1)),
    *(f"on-heat-{index}" for index in range(HEAT + 1)),
)  # fmt: skip

# Dash patterns in pixels, so that curves differ in more than colour.
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 3), (1.5, 2.5), (9, 3, 2, 3))

_STAND_IN = re.compile(r"#0101([0-9a-f]{2})")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "paring",
    "text.parse_math": False,  # a "$" in a module path is a "$"
    "lines.scale_dashes": False,
    "axes.unicode_minus": False,
    "path.simplify": True,
}


def ink(role: str) -> str:
    """The stand-in colour of a role in :data:`ROLES`."""
    return f"#0101{ROLES.index(role):02x}"


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """An empty transparent figure of that many CSS pixels, free of the settings that the process has for matplotlib."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        yield figure


def themed(figure: Figure, *, key: str, title: str, description: str) -> Markup:
    """Turn a figure into an inline ``<svg role="img">`` with a title and a description.

    Must run inside :func:`canvas`.

    Args:
        figure: what was drawn, in colours from :func:`ink`.
        key: unique on the page; prefix of all ids in the figure.
        title: the accessible name.
        description: what the figure shows, in a sentence or two with the numbers that matter.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(buffer.getvalue())
    _tidy(root, key)
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib.clear()
    root.attrib.update(
        {
            "role": "img",
            "viewBox": f"0 0 {width} {height}",
            "width": width,
            "height": height,
            "aria-labelledby": f"{key}-title",
            "aria-describedby": f"{key}-desc",
        }
    )
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        child = ET.Element(tag, {"id": f"{key}-{tag}"})
        child.text = clean(text)
        root.insert(index, child)
    # Elements without content are written in full: HTML reads <path></path> as SVG does.
    return Markup(ET.tostring(root, encoding="unicode", short_empty_elements=False))


def _tidy(element: ET.Element, key: str) -> None:
    """Drop namespaces, unused ids, style sheets and fonts below ``element``; prefix references; put the roles in."""
    element.tag = _local(element.tag)
    attributes = {_local(name): value for name, value in element.attrib.items()}
    for name, value in attributes.items():
        if name == "style":
            parts = [part.strip() for part in value.split(";") if not part.strip().startswith("font-family")]
            value = _STAND_IN.sub(lambda match: f"var(--{ROLES[int(match[1], 16)]})", "; ".join(parts))
        attributes[name] = _REFERENCE.sub(lambda match: f"url(#{key}-{match[1]})", value)
    if "href" in attributes:
        attributes["href"] = f"#{key}-{attributes['href'].removeprefix('#')}"
    if "id" in attributes:
        if element.tag == "g":
            del attributes["id"]
        else:
            attributes["id"] = f"{key}-{attributes['id']}"
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    if "d" in attributes:
        attributes["d"] = " ".join(attributes["d"].split())
    element.attrib.clear()
    element.attrib.update(attributes)
    if element.tag != "text":
        element.text = None
    element.tail = None
    for child in list(element):
        if _local(child.tag) in ("style", "metadata"):
            element.remove(child)
        else:
            _tidy(child, key)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
