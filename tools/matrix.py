"""Run the tests with the oldest and the newest releases that paring supports, on every Python that is here, and keep what came of it.

python tools/matrix.py [NAME ...]     all of them by default; environments are made in build/matrix, each a few GB where torch brings CUDA

What cannot run here is kept as that, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests" / "trust" / "environments.json"
SHOWN = ("torch", "transformers", "peft", "accelerate", "trl")

# What touches the libraries: attaching, the step, training, saving, exporting. What concerns paring alone is the same everywhere.
TESTS = ("tests/attach", "tests/exchange", "tests/train", "tests/contract", "tests/test_step.py", "tests/test_api.py", "tests/trust")
WORD = "not contract or sora or lora_ga"
"""Of the contract tests those of one method with gates, of one that starts from a gradient, and of LoRA's kin by name."""

HELPERS = ("pytest>=9.0", "pytest-timeout", "pytest-xdist", "hypothesis", "beartype", "gguf", "schedulefree", "prodigyopt", "dadaptation")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One combination.

    Attributes:
        python: the interpreter's name.
        pins: what is installed at which version, in this order of importance; paring's own requirements say the rest.
        locked: take the versions that constraints.txt has.
    """

    python: str
    pins: tuple[str, ...] = ()
    locked: bool = False


OLDEST = ("torch==2.6.0", "transformers==5.6.0", "peft==0.20.0")
NEWEST = ("torch", "transformers", "peft")
ENVIRONMENTS: Mapping[str, Environment] = MappingProxyType(
    {
        "pinned, Python 3.11": Environment(python="python3.11", locked=True),
        "oldest, Python 3.11": Environment(python="python3.11", pins=OLDEST),
        "newest, Python 3.11": Environment(python="python3.11", pins=NEWEST),
        "pinned, Python 3.12": Environment(python="python3.12", locked=True),
        "newest, Python 3.12": Environment(python="python3.12", pins=NEWEST),
        "pinned, Python 3.13": Environment(python="python3.13", locked=True),
        "newest, Python 3.13": Environment(python="python3.13", pins=NEWEST),
    }
)


def run(name: str) -> dict[str, Any]:
    """Make one environment, run the tests in it, and say what came of them."""
    one = ENVIRONMENTS[name]
    if not _runs(one.python):
        return {"reason": f"{one.python} is not on this machine"}
    place = ROOT / "build" / "matrix" / name.replace(", ", "-").replace(" ", "")
    interpreter = place / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([one.python, "-m", "venv", str(place)], check=True)
    install = [str(interpreter), "-m", "pip", "install", "--quiet"]
    constraints = ("-c", str(ROOT / "constraints.txt")) if one.locked else ()
    # torch first, so that its build is what the machine has and nothing after it brings another one.
    for packages in (("--upgrade", *one.pins) if one.pins else ("torch",), (*one.pins, "-e", f"{ROOT}[trl,quant,study]", *HELPERS)):
        done = subprocess.run([*install, *constraints, *packages], check=False, capture_output=True, text=True)
        if done.returncode:
            return {"reason": f"it does not install: {_last(done.stderr)}"}
    report = place / "report.xml"
    command = [str(interpreter), "-m", "pytest", "-q", "-m", "not slow", "-k", WORD, f"--junitxml={report}", *TESTS]
    subprocess.run(command, check=False, cwd=ROOT, env=_variables(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if not report.exists():
        return {"reason": "pytest ended without a report", **_versions(interpreter)}
    return {**_versions(interpreter), **outcome(report)}


def _runs(python: str) -> bool:
    """Whether there is such an interpreter; a version manager may have put a name on the path that starts none."""
    return shutil.which(python) is not None and not subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode


def outcome(report: Path) -> dict[str, Any]:
    """Counts, and the names of what failed."""
    suite = ET.parse(report).getroot().find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "skipped": len(skipped),
        "failed": [f"{case.get('classname')}.{case.get('name')}" for case in failed],
    }


def rows(kept: Path = KEPT) -> list[Sequence[str]]:
    """What the docs print: a row for each environment."""
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    return [_row(name, known.get(name)) for name in ENVIRONMENTS]


def _row(name: str, found: Mapping[str, Any] | None) -> Sequence[str]:
    if found is None:
        return (name, *[""] * (1 + len(SHOWN)), "not run")
    versions = found.get("versions", {})
    said = found.get("reason") or f"{found['passed']} passed, {len(found['failed'])} failed, {found['skipped']} skipped"
    return (
        name,
        versions.get("python", ""),
        *(versions.get(package, "") for package in SHOWN),
        f"not run: {said}" if "reason" in found else said,
    )


def _versions(interpreter: Path) -> dict[str, Any]:
    code = (
        "import json, platform; from importlib.metadata import version; "
        f"print(json.dumps({{'python': platform.python_version(), **{{name: version(name) for name in {SHOWN!r}}}}}))"
    )
    return {"versions": json.loads(subprocess.run([str(interpreter), "-c", code], check=True, capture_output=True, text=True).stdout)}


def _variables() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.startswith("ERROR")]
    return " ".join((lines or ["no reason was given"])[0].removeprefix("ERROR: ").split())[:300]


def main() -> None:
    """Run those that are asked for, and keep each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(ENVIRONMENTS), metavar="NAME")
    for name in parser.parse_args().names:
        found = run(name)
        known = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
        KEPT.write_text(json.dumps({**known, name: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(name, found, file=sys.stderr)


if __name__ == "__main__":
    main()
