"""A YAML file as plain data that knows its lines, so that what is wrong is told where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from paring.cli.plain import PlainLoader, where, why
from paring.core.errors import SettingError, near

Place: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the top of the file to a value."""


_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(PlainLoader):
    """YAML as people write numbers: PyYAML takes ``3e-4`` for a word."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A file's content.

    Attributes:
        path: the file.
        data: what it says.
        lines: the line of each key and item, from 1.
    """

    path: Path
    data: Mapping[str, Any]
    lines: Mapping[Place, int]

    def wrong(self, place: Place, reason: str) -> SettingError:
        """An error that names the line of a place, or of the nearest one above it that stands in the file."""
        while place and place not in self.lines:
            place = place[:-1]
        return SettingError(f"{str(self.path)!r}, line {self.lines.get(place, 1)}: {reason}")

    def mapping(self, place: Place, known: Iterable[str] | None = None) -> Mapping[str, Any]:
        """The mapping at a place; an empty one where nothing stands.

        Args:
            place: where.
            known: the keys that it may have; ``None`` allows any.

        Raises:
            SettingError: it is no mapping, or has an unknown key.
        """
        found: Any = self.data
        for key in place:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is None:
            return {}
        name = ".".join(map(str, place)) or "the file"
        if not isinstance(found, dict):
            raise self.wrong(place, f"{name} is {found!r}, where keys with values are expected.")
        for key in found:
            if known is not None and key not in known:
                raise self.wrong((*place, key), f"unknown key {key!r}.{near(str(key), known)} Known here: {', '.join(known)}.")
        return found


def read_text(path: Path) -> Text:
    """Read a YAML file whose top is a mapping.

    Raises:
        SettingError: it cannot be read, is no YAML, or says something twice; names the line.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        beside = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        reason = error.strerror if isinstance(error, OSError) else "it is not in UTF-8"
        raise SettingError(f"{str(path)!r} cannot be read ({reason}).{near(path.name, beside)}") from error
    lines: dict[Place, int] = {}
    try:
        loader = _Loader(content)
        node = loader.get_single_node()
        data = {} if node is None else _plain(loader, node, (), lines, path)
    except yaml.YAMLError as error:
        raise SettingError(f"{str(path)!r}, line {where(error, content)}: this is no valid YAML for a study: {why(error)}.") from error
    if not isinstance(data, dict):
        raise SettingError(f"{str(path)!r}, line 1: a study is a mapping, with keys such as `tasks:` and `contestants:`.")
    return Text(path=path, data=data, lines=lines)


def _plain(loader: yaml.SafeLoader, node: yaml.Node, place: Place, lines: dict[Place, int], path: Path) -> Any:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
        raise SettingError(f"{str(path)!r}, line {node.start_mark.line + 1}: the tag {node.tag!r} is none that a study knows.")
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int | float):
                raise SettingError(f"{str(path)!r}, line {line}: {key!r} is no name.")
            name = str(key)
            if name in found:
                raise SettingError(
                    f"{str(path)!r}, line {line}: {name!r} stands here a second time; the first is in line {lines[*place, name]}."
                )
            lines[*place, name] = line
            found[name] = _plain(loader, value_node, (*place, name), lines, path)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*place, index), lines, path) for index, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)
