"""The safetensors file: written tensor by tensor, opened with every fault turned into one sentence."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paring.core.errors import AdapterError, ExportError, ParingError
from paring.core.linalg import finite

# The format's own names (its specification is a table in the safetensors README).
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
LARGEST_HEADER = 64 * 2**20
"""Bytes of a header that are read: some hundred thousand tensors."""

LONGEST = 540
"""Characters of a tensor's name that are read: a path of five hundred, and what stands around it."""

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_READ = frozenset(NAMES.values())


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor to write.

    Attributes:
        key: its name in the file.
        dtype, shape: known before it is computed, since the header comes first.
        tensor: computes it, when its turn has come.
    """

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    tensor: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def cast(tensor: Callable[[], Tensor], dtype: torch.dtype, name: str) -> Callable[[], Tensor]:
    """What computes a tensor and casts it when it is written.

    Raises:
        ExportError: when called, if a value does not fit.
    """

    def computed() -> Tensor:
        result = tensor().to(device="cpu", dtype=dtype)
        if not finite(result):
            limit = torch.finfo(dtype).max
            raise ExportError(f"A value of {name!r} does not fit {dtype}, whose largest is {limit:g}; export in bfloat16 or float32.")
        return result

    return computed


def save(entries: Sequence[Entry], path: Path) -> str:
    """Write tensors one at a time, so that memory holds two of them and the disk is the limit; same input, same bytes.

    The safetensors package wants all tensors at once, which for folded factors would be a second copy of the adapter.

    Returns:
        The SHA-256 of what was given to the disk, in hexadecimal. It is formed beside the writing, one tensor behind.

    Raises:
        ExportError: a dtype that the format does not have.
        OSError: the disk said no.
    """
    # Wider types first keeps every tensor aligned to its own size; within a type, the order given.
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        if entry.dtype not in NAMES:
            raise ExportError(f"Tensor {entry.key!r} has dtype {entry.dtype}, which is not written; cast it to a plain one first.")
        header[entry.key] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [offset, offset + entry.size]}
        offset += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(start)
    with path.open("wb") as file, ThreadPoolExecutor(max_workers=1) as beside:
        file.write(start)
        behind: Future[None] | None = None
        for entry in entries:
            tensor = entry.tensor()
            assert tensor.dtype == entry.dtype
            assert tuple(tensor.shape) == entry.shape
            data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            if behind is not None:
                behind.result()
            behind = beside.submit(digest.update, data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


class Reader:
    """An open safetensors file: shapes from the header, tensors when asked for."""

    def __init__(self, file: safe_open) -> None:
        self._file = file

    @cached_property
    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """``{key: (dtype name, shape)}`` of every tensor.

        Raises:
            AdapterError: a name is longer than any module's.
        """
        keys = [str(key) for key in self._file.keys()]  # type: ignore[no-untyped-call]  # noqa: SIM118
        for key in keys:
            if len(key) > LONGEST:
                raise AdapterError(f"A tensor's name has {len(key)} characters ({key[:40]!r}...); at most {LONGEST} are read.")
        views = {key: self._file.get_slice(key) for key in keys}  # type: ignore[no-untyped-call]
        return {key: (str(view.get_dtype()), tuple(view.get_shape())) for key, view in views.items()}

    def tensor(self, key: str) -> Tensor:
        """One tensor, on the CPU.

        Raises:
            AdapterError: it is of a kind that paring does not write.
        """
        kind = self.shapes[key][0]
        if kind not in _READ:
            raise AdapterError(f"Tensor {key!r} has dtype {kind}; tensors are read in {', '.join(NAMES.values())}.")
        result: Tensor = self._file.get_tensor(key)  # type: ignore[no-untyped-call]
        return result


@contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """A safetensors file, open for reading: nothing is allocated until a tensor is asked for.

    The format's reader checks the header against the file: its length, its JSON, that the tensors fill the data without gap or
    overlap, and that each shape times its dtype is its number of bytes.

    Raises:
        AdapterError: the file is missing, truncated, or not what its header says.
    """
    if not path.is_file():
        raise AdapterError(f"There is no {path.name} in {str(path.parent)!r}.")
    try:
        _check_header(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            yield Reader(file)
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        if isinstance(error, ParingError):
            raise
        said = " ".join(str(error).split())
        raise AdapterError(f"{str(path)!r} is truncated or damaged ({said}); fetch or export it again.") from error


def _check_header(path: Path) -> None:
    """Refuse a header that only reading would show to be none.

    Raises:
        ValueError: says how long it is said to be.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_HEADER:
        raise ValueError(f"its header is said to have {length:,} bytes, and at most {LARGEST_HEADER:,} are read")
