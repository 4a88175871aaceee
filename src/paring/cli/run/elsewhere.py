"""Loading an adapter in another process, in an environment that does not have paring.

An import hook that hides the package would prove less: PEFT, transformers and torch find plug-ins by entry points and ``.pth`` files as
well. So a bare virtual environment is made (a fraction of a second: no pip, nothing is copied), whose site-packages holds links to
every installed package but paring's own files, by the list that the installer kept of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from paring.core.errors import ExportError

SCRIPT = Path(__file__).parent.parent / "outside.py"
SITES = ("site-packages", "dist-packages")


def environment(folder: Path) -> Path:
    """A virtual environment in ``folder`` with all installed packages but paring.

    Returns:
        Its interpreter.
    """
    venv.EnvBuilder(symlinks=os.name != "nt").create(folder)
    site = next(path for path in folder.rglob("site-packages") if path.is_dir())
    own = _own_names()
    for source in (Path(path) for path in sys.path if Path(path).name in SITES and Path(path).is_dir()):
        for entry in source.iterdir():
            link = site / entry.name
            if entry.name not in own and entry.name != "__pycache__" and not link.exists():
                link.symlink_to(entry, target_is_directory=entry.is_dir())
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _own_names() -> frozenset[str]:
    """What installing paring put into site-packages: the package or the file that leads to it, and its metadata."""
    try:
        files = distribution("paring").files or []
    except PackageNotFoundError:
        files = []
    return frozenset({"paring", *(file.parts[0] for file in files if file.parts[0] != "..")})


def loaded_elsewhere(job: Mapping[str, Any]) -> dict[str, Tensor]:
    """Do a job of :mod:`paring.cli.outside` in a fresh process without paring.

    Args:
        job: ``base``, ``adapter`` (folders or hub ids), ``task_type``, ``labels`` (their number), ``pad``, and either ``texts`` with
            ``max_length`` or ``inputs``.

    Returns:
        ``logits`` with the adapter and ``base`` without.

    Raises:
        ExportError: the adapter did not load there.
    """
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out.safetensors"
        python = environment(Path(place) / "env")
        variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        local = {key: str(Path(job[key]).resolve()) for key in ("base", "adapter") if Path(job[key]).exists()}
        if len(local) == 2:
            variables["HF_HUB_OFFLINE"] = "1"
        text = json.dumps({**job, **local, "out": str(out), "threads": torch.get_num_threads()})
        done = subprocess.run([python, "-I", SCRIPT], input=text, capture_output=True, text=True, cwd=place, env=variables, check=False)
        if done.returncode != 0 or not out.is_file():
            said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise ExportError(f"Stock PEFT, in an environment without paring, could not load {job['adapter']!r}: {said[-1]}")
        return load_file(out)
