"""A whole model to disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from paring.exchange.folder import replacing, store
from paring.exchange.layout import SIDE


def write_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, overwrite: bool, source: Mapping[str, Any]
) -> Path:
    """Write a folder that transformers loads, whole or not at all.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        folder: where to.
        overwrite: replace a folder that was written so before.
        source: where the model comes from, for the side file.

    Raises:
        ExportError: the disk is full or cannot be written.
        OutputExistsError: the folder is there and ``overwrite`` is off, or it holds what was not written so.
    """
    with replacing(folder, overwrite=overwrite, ask="--overwrite") as fresh:
        fill(fresh, model, tokenizer, source)
    return folder


def fill(fresh: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Mapping[str, Any]) -> None:
    """Write the files into an empty folder, and beside them which they are: what is listed, and nothing else, may be overwritten."""
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    files = sorted([SIDE, *(path.relative_to(fresh).as_posix() for path in fresh.rglob("*") if path.is_file())])
    store(fresh / SIDE, (json.dumps({**source, "files": files}, indent=2) + "\n").encode())
