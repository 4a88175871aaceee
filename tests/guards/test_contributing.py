"""The method that CONTRIBUTING walks through is one that works."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from paring.core.errors import SettingError
from paring.method import Method
from paring.parts.shape import Shape
from tools import generate

ROOT = Path(__file__).parents[2]
NAME = "proportional"


@pytest.fixture
def example(tmp_path: Path) -> Iterator[type[Method]]:
    """The class that the example file defines; it is forgotten afterwards."""
    blocks = re.findall(rf"<!-- example: {NAME} -->\n```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    path = tmp_path / f"{NAME}.py"
    path.write_text(blocks[0])
    spec = spec_from_file_location(f"example_{NAME}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        member = Method.members[NAME]
        assert issubclass(member, Method)
        yield member
    finally:
        del sys.modules[spec.name]
        Method.members.pop(NAME, None)


@pytest.mark.parametrize(("wide", "rank"), [(8, 1), (64, 3), (200, 5)])
def test_the_example_is_what_it_says(example: type[Method], wide: int, rank: int, generator: torch.Generator) -> None:
    slot = example().example().slot(Shape(path="layer", in_features=wide, out_features=100), generator)
    assert slot.factors().rank == rank
    x, y = torch.randn(2, wide, generator=generator), torch.randn(2, 100, generator=generator)
    assert torch.equal(slot(y, x), y)
    with torch.no_grad():
        slot.get_parameter("B").fill_(1.0)
    assert torch.allclose(slot(y, x), y + 16.0 / rank * (x @ slot.get_parameter("A").T @ slot.get_parameter("B").T), atol=1e-4)


def test_the_example_is_written_and_read_back(example: type[Method]) -> None:
    method = example.decode(example().encode())
    assert method == example()
    with pytest.raises(SettingError, match="share"):
        example.decode({**example().encode(), "share": 0.0})


def test_the_example_has_a_page(example: type[Method]) -> None:
    page = generate.page(example)
    assert "| `share` | `float` | `0.05` |" in page
    assert r"\[y = W x" in page
