"""What a result was measured with."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The processor's own name, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _bfloat16_units() -> bool:
    found = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(found and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def environment() -> dict[str, Any]:
    """Versions, machine and threads."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("paring", "torch", "peft", "transformers", "numpy")}
        | {"python": platform.python_version()},
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "bfloat16_units": _bfloat16_units(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def finished(log: Path) -> list[dict[str, Any]]:
    """The runs that a log has a line for."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def command() -> str:
    """The command line that repeats this run; the folder of the data is the reader's own."""
    given = list(sys.argv[1:])
    if "--data" in given:
        given[given.index("--data") + 1] = "DIR"
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given])


def kept(name: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of ``results/<name>.json``, none if there is no such file.

    Raises:
        SystemExit: they were measured elsewhere, with other versions or other settings, so one table cannot hold both.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    before = json.loads(path.read_text())
    now = {**environment(), **settings}
    differing = [key for key in now if key != "date" and before.get(key) != now[key]]
    if differing:
        raise SystemExit(
            f"{path} was measured with other {', '.join(differing)}; give another --name, or leave out --resume to replace it."
        )
    cells: list[dict[str, Any]] = before["cells"]
    return cells


def save(name: str, result: dict[str, Any], measured: dict[str, Any] | None = None) -> Path:
    """Write ``results/<name>.json``: the result, the command that repeats it, and what it was measured with, if not here and now."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps({"command": command(), **(measured or environment()), **result}, indent=1, sort_keys=True) + "\n")
    scratch.replace(path)
    return path
