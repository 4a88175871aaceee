"""Two adapters live on one model, both on all its linear modules, and know nothing of each other."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

import paring
from paring import train
from paring.attach.find import adapters, slots
from paring.core.errors import TargetError
from tests.contract.cases import Case, assert_close, logits, names_that_differ, roughen
from tests.releases import names_are_kept


def _two(case: Case) -> PeftModel:
    """A model with adapters "default" and "second"; the first is active."""
    model = case.roughened()
    model.add_adapter("second", case.config(seed=8))
    roughen(model, torch.Generator().manual_seed(2), "second")
    model.set_adapter("default")
    return model.eval()


def _alone(case: Case, seed: int, noise: int) -> torch.Tensor:
    model = case.adapted(seed=seed)
    roughen(model, torch.Generator().manual_seed(noise))
    return logits(model, case.kind.inputs())


def test_each_adapter_computes_what_it_does_alone(case: Case) -> None:
    model, inputs = _two(case), case.kind.inputs()
    assert slots(model, "default").keys() == slots(model, "second").keys() == slots(case.adapted()).keys()
    assert torch.equal(logits(model, inputs), _alone(case, 7, 1))
    model.set_adapter("second")
    assert torch.equal(logits(model, inputs), _alone(case, 8, 2))
    model.set_adapter("default")
    assert torch.equal(logits(model, inputs), _alone(case, 7, 1))
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), logits(case.base(), inputs))


def test_both_find_every_linear_module(transformer: Case) -> None:
    base = transformer.base()
    output = base.get_output_embeddings()
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not output}
    # PEFT leaves out the head of a classifier, which is trained fully.
    linear.discard("classifier")
    model = transformer.adapted(base=base, target_modules="all-linear")
    model.add_adapter(
        "second", paring.ParingConfig(method=transformer.method, target_modules="all-linear", task_type=transformer.kind.task)
    )
    assert slots(model, "default").keys() == slots(model, "second").keys() == linear


def test_training_one_adapter_leaves_the_other_alone(case: Case) -> None:
    model = _two(case)
    model.set_adapter("second")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = train.create_optimizer(model, lr=1e-2)
    torch.manual_seed(0)
    model(**case.kind.batch()).loss.backward()
    optimizer.step()
    changed = names_that_differ(dict(model.state_dict()), before)
    assert changed
    assert all(".second." in name for name in changed)


def test_two_active_adapters_add_up(case: Case) -> None:
    model = _two(case)
    path = next(iter(slots(model)))
    layer = model.base_model.model.get_submodule(path)
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        base = layer.base_layer(x)
        single = [layer.paring_slot[name](torch.zeros_like(base), x) for name in ("default", "second")]
        layer.set_adapter(["default", "second"])
        assert_close(layer(x), base + single[0] + single[1])


@pytest.mark.parametrize("gone", ["default", "second"])
def test_deleting_one_adapter_leaves_the_other(case: Case, gone: str) -> None:
    model, inputs = _two(case), case.kind.inputs()
    left = "second" if gone == "default" else "default"
    model.set_adapter(left)
    before = logits(model, inputs)
    model.delete_adapter(gone)
    assert adapters(model) == [left]
    assert list(model.peft_config) == [left]
    assert not any(f".{gone}." in name for name in model.state_dict())
    assert torch.equal(logits(model, inputs), before)
    assert paring.ranks(model, left)
    with pytest.raises(TargetError, match=rf"no .*adapter {gone!r} on this model"):
        paring.ranks(model, gone)
    model.add_adapter(gone, case.config(seed=9))
    assert torch.equal(logits(model, inputs), before)


@names_are_kept
def test_an_adapter_of_the_same_name_is_refused(case: Case) -> None:
    model = _two(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="second"):
        model.add_adapter("second", case.config(seed=9))
    assert names_that_differ(dict(model.state_dict()), before) == []


def test_snapshots_tell_adapters_apart(case: Case) -> None:
    model = _two(case)
    first, second = paring.snapshot(model), paring.snapshot(model, "second")
    assert first.modules.keys() == second.modules.keys()
    assert not any(torch.equal(first.modules[path].a, second.modules[path].a) for path in first.modules)
    assert first.heads.keys() == second.heads.keys()
