"""Writing an adapter that was made out of others, in the words of the command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paring.cli.run.options import DType, Layout

if TYPE_CHECKING:
    from paring.core.adapter import Adapter


def rewrite(
    adapter: Adapter,
    folder: str,
    *,
    layout: Layout,
    export_dtype: DType,
    overwrite: bool,
    extra_files: Mapping[str, bytes],
    command: Sequence[str],
    module_names: Sequence[str] | None = None,
) -> None:
    """Write a folder, read it back and compare, before it takes its place.

    Raises:
        ExportError: no rank is left, or what was written differs.
        OutputExistsError: there is something already, and ``overwrite`` is off.
    """
    import torch

    import paring
    from paring.cli.run.base import DTYPES
    from paring.exchange.compare import check_written
    from paring.exchange.write import write

    asked = DTYPES[export_dtype]
    dtype = asked if isinstance(asked, torch.dtype) else None

    def check(written: Path) -> None:
        check_written(paring.read(written), adapter, dtype)

    write(
        adapter,
        folder,
        layout=layout,
        dtype=dtype,
        overwrite=overwrite,
        module_names=module_names,
        extra_files=extra_files,
        command=shlex.join(command),
        check=check,
    )
