"""A page taken apart, as the tests of the report need it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = frozenset({"meta", "wbr", "br", "hr", "img", "link", "input"})


class Page(HTMLParser):
    """Elements, text and references of a page; ``faults`` lists tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.feed(html)
        self.close()
        self.faults += [f"<{tag}> stays open" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that it closes the innermost open element."""
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        """Collect what is not style."""
        if "style" not in self._open:
            self._text.append(data)

    @property
    def text(self) -> str:
        """The visible text, white space as single blanks."""
        return " ".join("".join(self._text).split())

    @property
    def ids(self) -> list[str]:
        """All ids, in order."""
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]

    @property
    def references(self) -> set[str]:
        """All ids that something on the page points to."""
        found: set[str] = set()
        for _, attributes in self.tags:
            found.update(re.findall(r"url\(#([^)]+)\)", " ".join(value or "" for value in attributes.values())))
            found.update((attributes.get("aria-labelledby") or "").split())
            found.update((attributes.get("aria-describedby") or "").split())
            if (attributes.get("href") or "").startswith("#"):
                found.add((attributes["href"] or "")[1:])
        return found
