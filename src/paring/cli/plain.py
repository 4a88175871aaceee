"""YAML out of files that others wrote: plain data only, bounded in size, depth and what aliases multiply."""

from __future__ import annotations

from typing import Any

import yaml

LARGEST = 2**18
"""Bytes of a file that are read."""

MOST = 5000
"""Values in a file, aliases written out."""

DEEPEST = 50
"""Levels of them."""


class PlainLoader(yaml.SafeLoader):
    """What is wrong with a file is always a ``yaml.YAMLError``, and takes no longer to find than reading so many values.

    Args:
        text: the file's text.

    Raises:
        yaml.YAMLError: a letter that no YAML has, or too many of them.
    """

    def __init__(self, text: str) -> None:
        if len(text) > LARGEST:
            raise yaml.YAMLError(f"it has more than {LARGEST:,} letters")
        super().__init__(text)
        self._values = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One value, as long as there are not too many, and not too deep."""
        self._values += 1
        self._depth += 1
        if self._values > MOST or self._depth > DEEPEST:
            what = f"more than {MOST:,} entries" if self._values > MOST else f"nested too deep, more than {DEEPEST} levels"
            raise yaml.composer.ComposerError(None, None, what, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """The file's value, weighed with its aliases written out."""
        node = super().get_single_node()
        if node is not None:
            self._weigh(node, {})
        return node

    def _weigh(self, node: yaml.Node, known: dict[yaml.Node, int | None]) -> int:
        """The number of values that a node stands for."""
        if node in known:
            weight = known[node]
            if weight is None:
                raise yaml.constructor.ConstructorError(None, None, "a value that holds itself", node.start_mark)
            return weight
        known[node] = None
        weight = 1
        if isinstance(node, yaml.CollectionNode):
            for item in node.value:
                for part in item if isinstance(item, tuple) else (item,):
                    weight += self._weigh(part, known)
        if weight > MOST:
            raise yaml.constructor.ConstructorError(None, None, f"more than {MOST:,} entries", node.start_mark)
        known[node] = weight
        return weight

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; one that its type does not have is an error with a place like any other."""
        try:
            value = super().construct_object(node, deep=deep)
            if isinstance(value, int):
                float(value)  # what no float holds is computed with nowhere
            return value
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            shown = f"{node.value[:40]!r}" if isinstance(node, yaml.ScalarNode) else "this"
            what = f"{shown} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error

    def fetch_more_tokens(self) -> Any:
        """The next tokens; an escape that is no letter, or a version of thousands of digits, is an error with a place."""
        try:
            return super().fetch_more_tokens()
        except (OverflowError, ValueError) as error:
            raise yaml.scanner.ScannerError(None, None, f"no letter or number ({error})", self.get_mark()) from error


def where(error: yaml.YAMLError, text: str) -> int:
    """The line, from 1, that an error of the loader is in."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return int(error.problem_mark.line) + 1
    place = error.position if isinstance(error, yaml.reader.ReaderError) else 0
    return text.count("\n", 0, place) + 1


def why(error: yaml.YAMLError) -> str:
    """What is wrong, on one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return str(error.problem)
    if isinstance(error, yaml.reader.ReaderError):
        return (
            f"it has a letter that YAML does not allow, {chr(error.character) if isinstance(error.character, int) else error.character!r}"
        )
    return " ".join(str(error).split())
