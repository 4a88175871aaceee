"""DoRA: direction and length, against PEFT's, over any direction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import paring
import paring.api
import paring.compress
import paring.train
from paring import method as methods
from paring.attach.find import slots
from paring.core.adapter import Adapter
from paring.core.entries import Entries
from paring.core.errors import AdapterError, ExportError, SettingError
from paring.core.factors import Factors
from paring.exchange.write import write
from paring.kernels.norms import row_norms
from paring.method import Method
from paring.methods.dora import DoRA
from paring.methods.shira import SHiRA
from paring.methods.sora import SoRA
from paring.parts.parameterise.gated import Gated
from paring.train.look import tally
from paring.train.recorder import modules
from tests.contract.cases import example
from tests.methods.small import WIDTHS, adapted, batch, delta, net, run, steps


def _dense(model: nn.Module) -> dict[str, Tensor]:
    """The adapted weights, by the equation."""
    found = {}
    for path, slot in slots(model).items():
        total = net().get_submodule(path).weight.data + delta(model, path)
        assert slot.magnitude is not None
        found[path] = total / total.norm(dim=1, keepdim=True) * slot.magnitude.detach().double()[:, None]
    return found


def _theirs(model: PeftModel, rank: int = 3, alpha: float = 6.0) -> Any:
    """PEFT's DoRA with the same factors and magnitudes."""
    peft = get_peft_model(
        net(), LoraConfig(r=rank, lora_alpha=alpha, use_dora=True, target_modules=list(WIDTHS)), autocast_adapter_dtype=False
    )
    for path, slot in slots(model).items():
        layer = peft.base_model.model.get_submodule(path)
        layer.lora_A["default"].weight.data = slot.get_parameter("A").detach().double().clone()
        layer.lora_B["default"].weight.data = slot.get_parameter("B").detach().double().clone()
        layer.lora_magnitude_vector["default"].weight.data = slot.get_parameter("magnitude").detach().double().clone()
    return peft


def _doubled(model: PeftModel) -> PeftModel:
    for slot in slots(model).values():
        slot.double()
    return model


def test_peft() -> None:
    model = _doubled(adapted(DoRA(rank=3, alpha=6.0)))
    with torch.no_grad():
        for slot in slots(model).values():
            slot.get_parameter("B").normal_(generator=torch.Generator().manual_seed(1))
            slot.get_parameter("magnitude").mul_(1.3)
    theirs = _theirs(model)
    ours, wanted = model(**batch()), theirs(**batch())
    torch.testing.assert_close(ours["logits"], wanted["logits"], rtol=1e-10, atol=1e-12)
    ours["loss"].backward()
    wanted["loss"].backward()
    for path, slot in slots(model).items():
        layer = theirs.base_model.model.get_submodule(path)
        for name, other in (("A", layer.lora_A), ("B", layer.lora_B), ("magnitude", layer.lora_magnitude_vector)):
            torch.testing.assert_close(
                slot.get_parameter(name).grad, other["default"].weight.grad, rtol=1e-8, atol=1e-10, msg=f"{path} {name}"
            )


def _their_steps(theirs: Any, count: int) -> Iterator[float]:
    optimizer = torch.optim.AdamW([parameter for parameter in theirs.parameters() if parameter.requires_grad], lr=1e-2, weight_decay=0.0)
    for step in range(count):
        loss = theirs(**batch(step))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def test_trajectory() -> None:
    model = _doubled(adapted(DoRA(rank=3, alpha=6.0)))
    theirs = _theirs(model)

    def plain(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW([{**group, "weight_decay": 0.0} for group in parameters], lr=lr)

    ours = [loss for _, loss in steps(model, 40, optimizer=plain)]
    wanted = list(_their_steps(theirs, 40))
    assert float(model(**batch(0))["loss"]) < 0.8 * wanted[0]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(wanted), rtol=1e-6, atol=1e-9)


def test_lengths() -> None:
    model = adapted(DoRA(rank=3))
    for path, slot in slots(model).items():
        assert slot.magnitude is not None
        torch.testing.assert_close(slot.magnitude.double(), net().get_submodule(path).weight.data.norm(dim=1), rtol=1e-6, atol=0.0)
    run(model, 10)
    wanted = _dense(model)
    for path, slot in slots(model).items():
        assert slot.magnitude is not None
        torch.testing.assert_close(wanted[path].norm(dim=1), slot.magnitude.detach().double())
        torch.testing.assert_close(
            model.base_model.model.get_submodule(path).get_delta_weight("default").double(),
            wanted[path] - net().get_submodule(path).weight.data,
        )
    merged = model.eval().merge_and_unload()
    for path, weight in wanted.items():
        torch.testing.assert_close(merged.get_submodule(path).weight.data, weight, rtol=1e-6, atol=1e-8)


def test_constant_length() -> None:
    model = adapted(DoRA(rank=3))
    run(model, 3)
    model(**batch())["loss"].backward()
    # The same by autograd with the length as a number.
    weights = {}
    trained = {
        path: {name: parameter.detach().double().requires_grad_() for name, parameter, _ in slot.roles()}
        for path, slot in slots(model).items()
    }
    for path, slot in slots(model).items():
        own = trained[path]
        total = net().get_submodule(path).weight.data + slot.factors().scale * own["B"] @ own["A"]
        weights[f"{path}.weight"] = total * (own["magnitude"] / total.norm(dim=1).detach())[:, None]
    torch.func.functional_call(net(), weights, kwargs=batch())["loss"].backward()
    for path, slot in slots(model).items():
        for name, parameter, _ in slot.roles():
            torch.testing.assert_close(parameter.grad.double(), trained[path][name].grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in methods._own() if name != "dora"])
def test_any_direction(name: str, tmp_path: Path) -> None:
    direction = example(name)
    model = adapted(DoRA(direction=direction))
    with torch.no_grad():
        before = net()(**batch())["logits"]
        if not any(slot.delta().materialise().any() for slot in slots(model).values()):
            assert torch.equal(model.eval()(**batch())["logits"], before)
    model.train()
    if model.peft_config["default"].method.asks_for_steps:
        paring.train.plan(model, steps=8)
    losses = run(model, 8)
    assert losses[-1] < losses[0]
    model.eval()
    merged = net()
    for path, weight in _dense(model).items():
        merged.get_submodule(path).weight.data = weight
    torch.testing.assert_close(model(**batch())["logits"], merged(**batch())["logits"], rtol=1e-5, atol=1e-7)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(net(), str(tmp_path)).eval()
    assert again.peft_config["default"].method == DoRA(direction=direction)
    assert torch.equal(again(**batch())["logits"], model(**batch())["logits"])
    if isinstance(direction, SoRA):
        assert all(isinstance(slot, Gated) and int(slot.steps) == 8 for slot in slots(model).values()), "its proximal step runs"


def test_export(tmp_path: Path) -> None:
    model = adapted(DoRA(direction=SoRA(rank=4, penalty=0.0)))
    run(model, 5)
    gates = [slot for slot in slots(model).values() if isinstance(slot, Gated)]
    with torch.no_grad():
        gates[0].gate.zero_()
        gates[1].gate[:2] = 0.0
    model.eval()
    for layout in ("compact", "uniform"):
        paring.export(model, tmp_path / layout, layout=layout)  # type: ignore[arg-type]
        stock = PeftModel.from_pretrained(net(), str(tmp_path / layout), autocast_adapter_dtype=False).eval()
        torch.testing.assert_close(stock(**batch())["logits"], model(**batch())["logits"], rtol=1e-5, atol=1e-7)
        said = {finding.engine: finding.level for finding in paring.verify(tmp_path / layout, model)}
        assert (said["peft"], said["vllm_0_32"], said["sglang"]) == ("ok", "error", "error")
        read, live = paring.read(tmp_path / layout), paring.snapshot(model)
        assert all(torch.allclose(read.magnitudes[path], magnitude) for path, magnitude in live.magnitudes.items())
        fused = paring.api.fuse(net(), read)
        torch.testing.assert_close(fused(**batch())["logits"], model(**batch())["logits"], rtol=1e-5, atol=1e-7)


def test_magnitudes_are_counted_and_named(tmp_path: Path) -> None:
    model = adapted(DoRA(rank=2))
    wanted = sum(2 * (width + height) + height for width, height in WIDTHS.values())
    assert paring.snapshot(model).parameters == wanted
    assert sum(module.parameters for module in modules(model)) == sum(module.start_parameters for module in modules(model)) == wanted
    assert tally(slots(model)).live_parameters == wanted
    assert tally(slots(adapted(DoRA(direction=SoRA(rank=2))))).live_parameters == wanted
    card = (paring.export(model, tmp_path / "adapter") / "README.md").read_text()
    assert "- dora" in card
    assert "A DoRA adapter" in card
    assert "plain LoRA;" not in card


def test_a_direction_is_decoded_by_its_name_alone() -> None:
    written = DoRA(direction=SoRA(rank=2)).encode()
    assert Method.decode(written) == DoRA(direction=SoRA(rank=2))
    with pytest.raises(SettingError, match="Unknown method 'soraa'.*'sora'"):
        Method.decode({**written, "direction": {"name": "soraa"}})


def test_two_adapters_add_their_own_changes() -> None:
    model = adapted(DoRA(rank=3))
    run(model, 5)
    model.add_adapter("second", paring.ParingConfig(method=DoRA(rank=2), target_modules=list(WIDTHS), seed=5))
    with torch.no_grad():
        for slot in slots(model, "second").values():
            slot.get_parameter("B").normal_(generator=torch.Generator().manual_seed(1))
    model.eval()
    layer = model.base_model.model.get_submodule("first")
    x = batch()["x"]
    outputs = {}
    for names in (["default"], ["second"], ["default", "second"]):
        layer.set_adapter(names)
        outputs[len(names), names[0]] = layer(x)
    base = net().first(x)
    torch.testing.assert_close(outputs[2, "default"] - base, outputs[1, "default"] + outputs[1, "second"] - 2 * base)


@pytest.mark.parametrize("kind", ["factors", "entries", "nothing"])
def test_row_norms(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 5, dtype=torch.float64, generator=generator)
    a, b = torch.randn(3, 5, dtype=torch.float64, generator=generator), torch.randn(7, 3, dtype=torch.float64, generator=generator)
    updates = {
        "factors": Factors(a=a, b=b, gate=torch.tensor([0.5, 0.0, -2.0], dtype=torch.float64), scale=0.3),
        "entries": Entries(index=torch.tensor([0, 3, 4, 34]), values=a[0, :4].clone(), in_features=5, out_features=7),
        "nothing": None,
    }
    update = updates[kind]
    total = weight if update is None else weight + update.materialise(torch.float64)
    for given in (weight, weight.T.contiguous().T):
        torch.testing.assert_close(row_norms(given, update), total.norm(dim=1))
    assert row_norms(weight.bfloat16(), update).dtype == torch.float32


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"rank=3 is a setting of LoRA.*direction=SoRA\(rank=...\)"):
        DoRA(rank=3, direction=SoRA())
    with pytest.raises(SettingError, match="no length of its own"):
        DoRA(direction=DoRA())
    with pytest.raises(SettingError, match="direction='sora': give an instance of Method"):
        DoRA(direction="sora")  # type: ignore[arg-type]
    sparse = adapted(DoRA(direction=SHiRA(rank=1)))
    with pytest.raises(ExportError, match="SHiRA has no magnitudes"):
        paring.export(sparse, tmp_path / "sparse")
    adapter = paring.snapshot(adapted(DoRA(rank=2)))
    with pytest.raises(AdapterError, match=r"Compressing needs updates that are added .*DoRA, 2 modules"):
        paring.compress.compress(adapter, paring.compress.ToRank(rank=1))
    with pytest.raises(ExportError, match="'second' has no magnitudes where others do"):
        write(Adapter(modules=adapter.modules, magnitudes={"first": adapter.magnitudes["first"]}), tmp_path / "half")
    with pytest.raises(AdapterError, match="no update with so many outputs"):
        Adapter(modules=adapter.modules, magnitudes={"first": torch.ones(3)})
    assert not list(tmp_path.iterdir())
