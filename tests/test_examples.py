"""Every example runs as a user would run it: as a program, without a network."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.warm import Warm

EXAMPLES = Path(__file__).parent.parent / "examples"

# What an example needs beyond paring's own requirements.
NEEDS = {"with_trl": "trl", "with_sentence_transformers": "sentence_transformers"}
HELPERS = {"small"}
# Each takes a quarter of a minute, most of it for imports. What the others show is tested in tests/attach and tests/trust too.
QUICK = {"plain_loop", "with_trainer"}

PROGRAMS = [
    pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.slow)
    for path in sorted(EXAMPLES.glob("*.py"))
    if path.stem not in HELPERS
]


@pytest.mark.parametrize("path", PROGRAMS)
def test_example_runs(path: Path, warm: Warm, tmp_path: Path) -> None:
    needed = NEEDS.get(path.stem)
    if needed is not None and find_spec(needed) is None:
        pytest.skip(f"{path.name} needs the package {needed}, which is not installed")
    # Temporary files of the examples go to a folder of the test's, so that what they leave behind is seen.
    place = tmp_path / "temporary"
    place.mkdir()
    # What an example tells of itself, it must do by itself: any look at a hub is an error.
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(place), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    said = warm.run([path, "--quick"], cwd=tmp_path, env=variables, timeout=500)
    assert re.search(r"\b(live ranks|ranks left)\b", said)
    assert [item.name for item in tmp_path.iterdir()] == ["temporary"]


def test_every_example_that_needs_a_package_is_there() -> None:
    assert set(NEEDS) | HELPERS | QUICK < {path.stem for path in EXAMPLES.glob("*.py")}
