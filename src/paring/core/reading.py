"""JSON objects out of files that others wrote: bounded in size and depth, and nothing but plain files is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paring.core.errors import AdapterError, ParingError

LARGEST = 32 * 2**20
"""Bytes of a configuration that are read."""


def json_object(path: Path, error: type[ParingError] = AdapterError) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file; a pipe or a device by that name is refused before it is opened, since it may never end.
        error: what is raised.

    Raises:
        ParingError: of that kind: the file is missing, too large, not UTF-8, nested too deep, or not a JSON object.
    """
    if not path.is_file():
        raise error(f"There is no file {path.name} in {str(path.parent)!r}.")
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise error(f"{str(path)!r} has {size:,} bytes, too many for a configuration.")
        text = path.read_bytes().decode("utf-8")
        data = json.loads(text)
        if "\\u" in text:
            # Half a surrogate pair is a string of Python that no file and no screen can take.
            json.dumps(data, ensure_ascii=False).encode()
    except OSError as said:
        raise error(f"{str(path)!r} cannot be read ({said.strerror}).") from said
    except (ValueError, RecursionError) as said:
        raise error(f"{str(path)!r} is not JSON ({said}).") from said
    if not isinstance(data, dict):
        raise error(f"{str(path)!r} holds no JSON object but a {type(data).__name__}.")
    return data
