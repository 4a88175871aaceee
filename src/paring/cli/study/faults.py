"""What the machine does to a run: nothing that a contestant could be blamed for, and other runs would meet it too."""

from __future__ import annotations

import errno

from huggingface_hub.errors import LocalEntryNotFoundError

from paring.cli.console import causes, full_disk

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Full, over its quota, read-only, broken."""


def fault_of(error: BaseException) -> str | None:
    """What the machine did, as a part of a sentence, if an error or what caused it says so; ``None`` for any other error."""
    if full_disk(error):
        return "its disk is full"
    for one in causes(error):
        if isinstance(one, ConnectionError | TimeoutError | LocalEntryNotFoundError):
            return f"a connection was lost, or could not be made ({_said(one)})"
        if isinstance(one, OSError) and one.errno in DISK:
            return f"its disk could not be used ({_said(one)})"
    return None


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
