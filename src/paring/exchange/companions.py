"""The files that travel with an adapter: its model's configuration with the labels, its tokenizer, its chat template."""

from __future__ import annotations

from pathlib import Path

from paring.core.errors import AdapterError
from paring.exchange.folder import check_links
from paring.exchange.layout import COMPANIONS

LARGEST = 256 * 2**20
"""Bytes of one of them that are copied."""


def companions(source: str | Path) -> dict[str, bytes]:
    """Those that lie beside an adapter in a local folder, by name; none for one on the hub.

    Raises:
        AdapterError: one is a link out of the folder, or larger than any tokenizer.
    """
    folder = Path(source)
    if not folder.is_dir():
        return {}
    check_links(folder)
    found = [folder / name for name in COMPANIONS if (folder / name).is_file()]
    for path in found:
        if path.stat().st_size > LARGEST:
            raise AdapterError(f"{str(path)!r} has {path.stat().st_size:,} bytes, too many for a file beside an adapter; remove it.")
    return {path.name: path.read_bytes() for path in found}
