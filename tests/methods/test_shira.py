"""SHiRA: sparse entries of the weight, their masks, their file, and switching."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, ShiraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import paring
from paring.attach.find import slots
from paring.core.adapter import Adapter
from paring.core.entries import Entries
from paring.core.errors import AdapterError, ExportError, SettingError, StepError
from paring.core.factors import Factors
from paring.kernels.entries import Places, add_entries, entries_linear
from paring.merge import SVD, Concatenation, merge
from paring.methods.lora import LoRA
from paring.methods.shira import SHiRA
from paring.parts.initialise.mask import MASKS, Mask, drawn
from paring.parts.parameterise.sparse import Sparse
from paring.parts.shape import Shape
from tests.methods import small
from tests.methods.small import WIDTHS, adapted, batch, delta, full_gradients, kept, net, run

FROM_SHAPE: tuple[Mask, ...] = ("random", "structured")


def _sparse(model: nn.Module) -> dict[str, Sparse]:
    return {path: slot for path, slot in slots(model).items() if isinstance(slot, Sparse)}


def _trained(method: SHiRA | None = None, steps: int = 10) -> PeftModel:
    model = adapted(method or SHiRA(rank=2))
    run(model, steps, lr=3e-2)
    return model.eval()


def _chosen(model: nn.Module) -> dict[str, Tensor]:
    """Where the entries are, as masks."""
    found = {}
    for path, slot in _sparse(model).items():
        entries = slot.delta()
        mask = torch.zeros(entries.out_features * entries.in_features, dtype=torch.bool)
        mask[entries.index] = True
        found[path] = mask.view(entries.out_features, entries.in_features)
    return found


def _theirs(model: PeftModel) -> Any:
    """PEFT's SHiRA with the same places and values."""
    peft = get_peft_model(net(), ShiraConfig(r=2, target_modules=list(WIDTHS)))
    for path, slot in _sparse(model).items():
        layer, entries = peft.base_model.model.get_submodule(path), slot.delta()
        layer.shira_indices["default"] = torch.stack([entries.index // entries.in_features, entries.index % entries.in_features]).int()
        layer.shira_weight["default"].data = entries.values.clone()
    return peft.eval()


def test_dense_model() -> None:
    model = _trained()
    theirs = _theirs(model)
    loss, their_loss = model(**batch())["loss"], theirs(**batch())["loss"]
    torch.testing.assert_close(loss, their_loss)
    loss.backward()
    their_loss.backward()
    dense = net()
    for path in WIDTHS:
        dense.get_submodule(path).weight.data += delta(model, path)
    dense(**batch())["loss"].backward()
    for path, slot in _sparse(model).items():
        wanted = dense.get_submodule(path).weight.grad.flatten()[slot.delta().index]
        assert slot.values.grad is not None
        torch.testing.assert_close(slot.values.grad, wanted)
        torch.testing.assert_close(slot.values.grad, theirs.base_model.model.get_submodule(path).shira_weight["default"].grad)


def test_others_stay() -> None:
    model = _trained()
    masks, lora = _chosen(model), adapted(LoRA(rank=2))
    assert paring.snapshot(model).parameters == paring.snapshot(lora).parameters == sum(2 * (a + b) for a, b in WIDTHS.values())
    merged = copy.deepcopy(model).merge_and_unload()
    for path, mask in masks.items():
        new, old = merged.get_submodule(path).weight.data, net().get_submodule(path).weight.data
        assert torch.equal(new[~mask], old[~mask])
        assert bool((new[mask] != old[mask]).all())
    assert torch.linalg.matrix_rank(delta(model, "first")) > 2, "its rank is no rank of the update"


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: Mask) -> None:
    masks = _chosen(adapted(SHiRA(rank=2, mask=mask)))
    again, other = _chosen(adapted(SHiRA(rank=2, mask=mask))), _chosen(adapted(SHiRA(rank=2, mask=mask), seed=2))
    weights, gradients = {path: net().get_submodule(path).weight.data for path in WIDTHS}, full_gradients()
    for path, found in masks.items():
        assert int(found.sum()) == 2 * sum(WIDTHS[path])
        assert torch.equal(again[path], found)
        assert torch.equal(other[path], found) == (mask not in FROM_SHAPE)
        scores = {"magnitude": weights[path], "gradient": gradients[path], "snip": weights[path] * gradients[path]}
        if mask in scores:
            size = scores[mask].abs()
            assert size[found].min() >= size[~found].max()
        if mask == "structured":
            assert bool(found.diagonal().all())
            rows = found.sum(1)
            whole = int((rows == found.shape[1]).sum())
            assert whole >= 1
            assert int((rows > 1).sum()) <= whole + 1, "all but one of the rows beside the diagonal are whole"


def test_overlap() -> None:
    shape = Shape(path="fc", in_features=300, out_features=200)
    size, count = 60_000, 6_000
    one, two = (drawn("random", shape, count, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    common = len(set(one.tolist()) & set(two.tolist()))
    # Hypergeometric: mean n^2 / N = 600, standard deviation 22.
    assert abs(common - count * count / size) < 110
    # No place is preferred: over many draws each is taken n / N of the time.
    little = Shape(path="fc", in_features=5, out_features=4)
    taken = torch.zeros(20)
    for seed in range(2000):
        taken[drawn("random", little, 7, torch.Generator().manual_seed(seed))] += 1
    assert (taken / 2000 - 7 / 20).abs().max() < 5 * (0.35 * 0.65 / 2000) ** 0.5
    many = drawn("random", little, 15, torch.Generator().manual_seed(0))
    assert many.unique().shape == (15,)


def test_nothing_dense() -> None:
    # The input of 100 x 64; PEFT's keeps a weight of 48 x 64 beside it.
    assert kept(SHiRA(rank=2)) == 100 * 64
    assert kept(ShiraConfig(r=2, target_modules=["0"])) >= 100 * 64 + 48 * 64


def test_small_values_are_not_rounded_away_in_a_coarse_weight() -> None:
    given = {name: value.float() for name, value in batch().items()}
    model = adapted(SHiRA(rank=2)).float()
    for layer in WIDTHS:
        model.base_model.model.get_submodule(layer).get_base_layer().bfloat16()
    slot = _sparse(model)["first"]
    x = given["x"].bfloat16()
    layer = model.base_model.model.get_submodule("first")
    with torch.no_grad():
        slot.values.fill_(2.0**-12)
        weight = layer.get_base_layer().weight
        assert bool(((weight.flatten()[slot.delta().index] + slot.values.bfloat16()) == weight.flatten()[slot.delta().index]).any())
    update, wanted = slot(torch.zeros_like(layer(x)), x).float(), x.float() @ slot.delta().materialise().T
    assert (update - wanted).norm() < 0.01 * wanted.norm()
    values = torch.autograd.grad(layer(x).sum(), slot.values)[0]
    assert values.dtype == torch.float32
    assert values.abs().min() > 0


def test_under_autocast_the_sum_is_cast_as_a_trained_weight_would_be() -> None:
    model, x = adapted(SHiRA(rank=2)).float(), batch()["x"].float()
    layer, slot = model.base_model.model.get_submodule("first"), _sparse(model)["first"]
    with torch.no_grad():
        slot.values.normal_(generator=torch.Generator().manual_seed(0))
    base = layer.get_base_layer()
    total = (base.weight + slot.delta().materialise()).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours, wanted = layer(x), torch.nn.functional.linear(x, total, base.bias)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, wanted)
    gradient = torch.autograd.grad(ours.float().square().sum(), slot.values)[0]
    dense = torch.autograd.grad(wanted.float().square().sum(), total)[0]
    torch.testing.assert_close(gradient, dense.flatten()[slot.delta().index])


def test_six_bytes(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(700, 600)

    torch.manual_seed(0)
    base = Wide()
    model = paring.adapt(copy.deepcopy(base), SHiRA(rank=8), target_modules=["fc"], seed=1)
    with torch.no_grad():
        _sparse(model)["fc"].values.normal_()
    model.save_pretrained(str(tmp_path / "ours"))
    paring.export(model, tmp_path / "theirs")

    def size(folder: Path) -> int:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    count = 8 * 1300
    assert size(tmp_path / "theirs") == 12 * count
    assert size(tmp_path / "ours") == 6 * count + 4 * -(-700 * 600 // 2**16)
    again = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "ours"))
    assert torch.equal(_sparse(again)["fc"].delta().index, _sparse(model)["fc"].delta().index)
    assert torch.equal(delta(again, "fc"), delta(model, "fc"))


@pytest.mark.parametrize("mask", MASKS)
def test_export(mask: Mask, tmp_path: Path) -> None:
    model = _trained(SHiRA(rank=2, mask=mask))
    paring.export(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("SHIRA", 2)
    stock = PeftModel.from_pretrained(net(), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(stock(**batch())["logits"], model(**batch())["logits"], rtol=1e-12, atol=1e-12)
    said = {finding.engine: finding.level for finding in paring.verify(tmp_path / "adapter", model)}
    assert said["peft"] == "ok"
    assert said["transformers"] == said["vllm_0_32"] == "error"


def test_switching() -> None:
    base = net()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    first, second = _trained(), _trained(SHiRA(rank=1, mask="magnitude"))
    one, two = paring.snapshot(first), paring.snapshot(second)
    with paring.Switch(base) as switch:
        for adapter, model in ((one, first), (two, second), (one, first)):
            switch.to(adapter)
            torch.testing.assert_close(base(**batch())["logits"], model(**batch())["logits"], rtol=1e-12, atol=1e-12)
        switch.to(one, two, weights=[0.5, 2.0])
        for path in WIDTHS:
            wanted = before[f"{path}.weight"] + 0.5 * delta(first, path) + 2.0 * delta(second, path)
            torch.testing.assert_close(base.get_submodule(path).weight.data, wanted)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_a_switch_keeps_the_bits_of_a_coarse_base() -> None:
    base = net().bfloat16()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    switch = paring.Switch(base)
    switch.to(paring.snapshot(_trained()))
    assert any(not torch.equal(value, before[name]) for name, value in base.state_dict().items())
    switch.off()
    switch.off()
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_a_switch_refuses_what_it_cannot_undo() -> None:
    base, adapter = net(), paring.snapshot(_trained())
    before = {name: value.clone() for name, value in base.state_dict().items()}
    switch = paring.Switch(base)
    with pytest.raises(AdapterError, match=r"low-rank factors .*first: 'first'.*paring.api.fuse"):
        switch.to(paring.snapshot(adapted(LoRA(rank=1))))
    with pytest.raises(SettingError, match="give one for each of the 1"):
        switch.to(adapter, weights=[1.0, 2.0])
    with pytest.raises(SettingError, match="Nothing to switch to"):
        switch.to()
    other = nn.Module()
    other.first = nn.Linear(10, 9)
    with pytest.raises(AdapterError, match="another base model"):
        paring.Switch(other).to(adapter)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_a_sum_is_over_the_union_of_places(tmp_path: Path) -> None:
    first, second = _trained(), _trained(SHiRA(rank=1, mask="magnitude"))
    total = merge([paring.snapshot(first), paring.snapshot(second)], Concatenation(weights=(1.0, 1.0)))
    for path in WIDTHS:
        torch.testing.assert_close(total.entries[path].materialise(torch.float64), delta(first, path) + delta(second, path))
        together = paring.snapshot(first).entries[path].parameters + paring.snapshot(second).entries[path].parameters
        assert total.entries[path].parameters < together, "the two share places"
    # More entries than one r stands for are filled up with zeros.
    from paring.exchange.write import write

    write(total, tmp_path / "sum")
    stock = PeftModel.from_pretrained(net(), str(tmp_path / "sum")).eval()
    base = net()
    paring.Switch(base).to(total)
    torch.testing.assert_close(stock(**batch())["logits"], base(**batch())["logits"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", ["gradient", "snip"])
def test_refused(mask: Mask) -> None:
    model = adapted(SHiRA(rank=1, mask=mask), calibrated=False)
    with pytest.raises(StepError, match="paring.calibrate"):
        model(**batch())
    model.eval()
    assert torch.equal(model(**batch())["logits"], net()(**batch())["logits"])
    assert small.run(adapted(SHiRA(rank=1, mask=mask)), 2)[1] > 0


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingError, match=r"mask='ransom'.*random"):
        SHiRA(mask="ransom")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="rank"):
        SHiRA(rank=0)
    with pytest.raises(SettingError, match=r"rank=5 is above what 'first' can use: it asks for 90 entries .* 8 x 10"):
        adapted(SHiRA(rank=5))


def test_factors_and_entries_are_not_taken_for_each_other(tmp_path: Path) -> None:
    from paring.compress import ToRank, compress
    from paring.exchange.write import write

    adapter = paring.snapshot(_trained())
    with pytest.raises(AdapterError, match=r"Compressing needs low-rank factors, .*first: 'first'"):
        compress(adapter, ToRank(rank=1))
    with pytest.raises(AdapterError, match=r"Merging by svd .sparse entries add up by concatenation. needs low-rank factors"):
        merge([adapter, adapter], SVD(rank=1))
    with pytest.raises(SettingError, match="no product of factors"):
        slots(_trained())["first"].factors()
    one = Factors(a=torch.ones(1, 10), b=torch.ones(8, 1))
    with pytest.raises(AdapterError, match="both factors and sparse entries"):
        Adapter(modules={"first": one}, entries=adapter.entries)
    with pytest.raises(ExportError, match="holds factors .'third'. and sparse entries"):
        write(Adapter(modules={"third": one}, entries=adapter.entries), tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_file_that_says_no_widths_is_not_read(tmp_path: Path) -> None:
    paring.export(_trained(), tmp_path / "adapter")
    (tmp_path / "adapter" / "paring.json").unlink()
    with pytest.raises(AdapterError, match="does not say how wide its modules are"):
        paring.read(tmp_path / "adapter")


@pytest.mark.parametrize("place", [(0, 10), (8, 0), (-1, 3)])
def test_a_file_with_a_place_outside_of_the_weight_is_refused(place: tuple[int, int], tmp_path: Path) -> None:
    # A column too far would be a place in the next row.
    paring.export(_trained(), tmp_path / "adapter")
    (tmp_path / "adapter" / "paring.json").write_text(
        json.dumps({"modules": {path: {"in_features": widths[0], "out_features": widths[1]} for path, widths in WIDTHS.items()}})
    )
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.first.shira_indices"][:, 0] = torch.tensor(place)
    save_file(tensors, file)
    with pytest.raises(AdapterError, match="outside of its weight, which is 8 x 10"):
        paring.read(tmp_path / "adapter")


def test_entries_of_different_base_models_do_not_add_up() -> None:
    one = paring.snapshot(_trained())
    other = Entries(index=torch.arange(3), values=torch.ones(3), in_features=9, out_features=8)
    with pytest.raises(AdapterError, match=r"Module 'first' is 10 -> 8 in adapter 1 and 9 -> 8 in adapter 2"):
        merge([one, Adapter(entries={"first": other})], Concatenation())


@pytest.mark.parametrize("index", [[0, 0], [1, 0], [-1, 3], [3, 80]])
def test_places_are_checked(index: list[int]) -> None:
    with pytest.raises(AdapterError, match=r"must ascend from 0 to below 8 x 10"):
        Entries(index=torch.tensor(index), values=torch.ones(2), in_features=10, out_features=8)


def test_kernels_have_the_gradients_of_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((4, 6), (4,)))
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    values = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    for piece in (1, 12, 2**24):
        places = Places.of(torch.tensor([0, 7, 8, 20, 23]), 6, 4, piece)

        def fused(x: Tensor, values: Tensor, places: Places = places) -> Tensor:
            return entries_linear(x, weight, bias, values, places)

        def beside(x: Tensor, values: Tensor, places: Places = places) -> Tensor:
            return add_entries(x @ weight.T + bias, x, values, places)

        torch.testing.assert_close(fused(x, values), beside(x, values))
        for one in (fused, beside):
            assert torch.autograd.gradcheck(one, (x, values))
            assert torch.autograd.gradgradcheck(one, (x, values))
