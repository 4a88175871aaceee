"""The Python surface where attach and exchange meet: names under wrappers, and an export that checks itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import paring
from paring import api
from paring.core.errors import ExportError, OutputExistsError, SettingError, TargetError
from paring.exchange.compare import check_written
from paring.methods.lora import LoRA


def bert() -> Any:
    """A small classifier."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    return BertForSequenceClassification(config)


def model(base: Any = None, **settings: Any) -> Any:
    """A small classifier with an adapter that does something."""
    adapted = paring.adapt(bert() if base is None else base, LoRA(rank=2, alpha=4), task_type="SEQ_CLS", seed=0, **settings)
    for name, parameter in adapted.named_parameters():
        if name.endswith(".B"):
            nn.init.normal_(parameter)
    return adapted


class Wrapper(nn.parallel.DistributedDataParallel):
    """DDP's shape without its processes."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "compiled": torch.compile,
    "ddp": Wrapper,
    "tuner": lambda adapted: adapted.base_model,
    "inner": lambda adapted: adapted.base_model.model,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_read_and_exported_as_the_model_itself(wrapper: str, tmp_path: Path) -> None:
    plain = model()
    wrapped = WRAPPERS[wrapper](plain)
    assert set(paring.snapshot(wrapped).heads) == {"classifier.weight", "classifier.bias"}
    assert paring.ranks(wrapped) == paring.ranks(plain)
    one, other = paring.export(plain, tmp_path / "plain"), paring.export(wrapped, tmp_path / "wrapped")
    assert {file.name: file.read_bytes() for file in one.iterdir()} == {file.name: file.read_bytes() for file in other.iterdir()}


def test_an_export_that_differs_in_one_module_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = api.write

    def wrong(adapter: Any, *args: Any, **kwargs: Any) -> Path:
        path, factors = next(iter(adapter.modules.items()))
        changed = type(factors)(a=factors.a * 1.001, b=factors.b, gate=factors.gate, scale=factors.scale)
        return write(
            type(adapter)(modules={**adapter.modules, path: changed}, heads=adapter.heads, metadata=adapter.metadata), *args, **kwargs
        )

    monkeypatch.setattr(api, "write", wrong)
    with pytest.raises(ExportError, match="differs from the live model by"):
        paring.export(model(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_one_low_precision_module_does_not_loosen_the_check_of_the_others() -> None:
    live = paring.snapshot(model())
    paths = list(live.modules)
    first, second = (live.modules[path] for path in paths[:2])
    mixed = type(live)(modules={paths[0]: first.to(dtype=torch.bfloat16), paths[1]: second}, heads=live.heads)
    wrong = type(first)(a=second.a * 1.01, b=second.b, gate=second.gate, scale=second.scale)
    check_written(mixed, mixed, None)
    with pytest.raises(ExportError, match="differs from the live model"):
        check_written(type(live)(modules={paths[0]: mixed.modules[paths[0]], paths[1]: wrong}, heads=live.heads), mixed, None)


def test_a_head_that_a_type_flushes_to_zero_is_not_written(tmp_path: Path) -> None:
    adapted = model()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "classifier.modules_to_save" in name:
                parameter.fill_(1e-9)
    with pytest.raises(ExportError, match=r"head 'classifier\.(weight|bias)' differs"):
        paring.export(adapted, tmp_path / "out", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []
    paring.export(adapted, tmp_path / "out", dtype=torch.bfloat16)


def test_a_head_that_is_missing_is_not_accepted() -> None:
    live = paring.snapshot(model())
    with pytest.raises(ExportError, match="lacks the trained head"):
        check_written(type(live)(modules=live.modules), live, None)


def test_padding_to_the_rank_that_an_engine_wants(tmp_path: Path) -> None:
    read = paring.read(paring.export(model(), tmp_path / "out", layout="uniform", pad_to=8))
    assert {factors.rank for factors in read.modules.values()} == {8}
    with pytest.raises(SettingError, match="pad_to=8 needs layout='uniform'"):
        paring.export(model(), tmp_path / "other", pad_to=8)


@pytest.mark.parametrize("along", [True, False])
def test_the_model_cards_lines_load_the_trained_tokenizer(along: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Where "org/base" is a folder as well as a name of the hub.
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1, "bad": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    tokenizer.save_pretrained("org/base")
    bert().save_pretrained("org/base")
    adapted = model(BertForSequenceClassification.from_pretrained("org/base"))
    out = paring.export(adapted, tmp_path / "out", tokenizer=tokenizer if along else None)
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    loaded: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(out)), loaded)  # What a reader of the card would paste; we wrote it ourselves.
    assert loaded["tokenizer"]("good bad ugly")["input_ids"] == [1, 2, 0]
    ids = torch.arange(6)[None]
    assert torch.allclose(loaded["model"].eval()(ids).logits, adapted.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize("name", ["org/base", None])
def test_a_name_is_no_model(name: Any) -> None:
    with pytest.raises(SettingError, match=rf"model={name!r}: give the model itself, .*from_pretrained\("):
        paring.adapt(name, LoRA(rank=2))


def test_an_adapter_of_another_name_is_asked_for_by_its_own(tmp_path: Path) -> None:
    adapted = model(adapter="first")
    for asked in (paring.ranks, paring.snapshot, lambda model: paring.export(model, tmp_path / "out")):
        with pytest.raises(TargetError, match=r"no adapter 'default' on this model, only 'first'\. Pass adapter='first'"):
            asked(adapted)
    assert paring.ranks(adapted, adapter="first")
    second = model(adapted, adapter="second")
    with pytest.raises(TargetError, match=r"only 'first', 'second'\. Pass adapter='first' or adapter='second'"):
        paring.ranks(second)


def test_the_error_for_a_folder_that_exists_names_the_argument(tmp_path: Path) -> None:
    adapted = model()
    paring.export(adapted, tmp_path / "out")
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        paring.export(adapted, tmp_path / "out")
    paring.export(adapted, tmp_path / "out", overwrite=True)
