"""Each engine's rule: a folder that it must flag, and one that it must pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from paring.core.adapter import Adapter
from paring.core.errors import AdapterError
from paring.core.factors import Factors
from paring.exchange.engines import ALL, BY_NAME, Finding, lint
from paring.exchange.layout import LAYOUTS
from paring.exchange.read import read
from paring.exchange.write import write
from tests.exchange.helpers import adapter, change, config_of, llama_like, put, tensors_of

NAMES = [engine.name for engine in ALL]
RAGGED = (3, 1, 0, 2, 4, 4)  # layer 1 has lost its q_proj


def levels(folder: Path, truth: Adapter | None = None) -> dict[str, set[str]]:
    """The levels of each engine's findings."""
    findings = lint(folder, truth=truth)
    assert [finding.engine for finding in findings] == sorted((finding.engine for finding in findings), key=NAMES.index)
    return {name: {finding.level for finding in findings if finding.engine == name} for name in NAMES}


def of(folder: Path, engine: str, truth: Adapter | None = None) -> list[Finding]:
    """What one engine finds."""
    return lint(folder, truth=truth, engines=[BY_NAME[engine]])


def concerned(findings: list[Finding]) -> list[str]:
    """The modules that findings speak of, in their order."""
    return [module for finding in findings for module in finding.modules]


def classic(folder: Path, **keys: Any) -> tuple[Path, Adapter]:
    """The usual LoRA of others, alpha twice the rank, everywhere the same; and what it means."""
    trained = llama_like([4] * 6)
    write(trained, folder, layout="uniform", pad_to=8)
    return change(folder, lora_alpha=16, **keys), trained


def doubled(trained: Adapter, ratio: float = 2.0) -> Adapter:
    """The same updates at another scale."""
    modules = {path: Factors(a=held.a, b=held.b, gate=held.gate, scale=held.scale * ratio) for path, held in trained.modules.items()}
    return Adapter(modules=modules, metadata=trained.metadata)


def test_compact_is_right_where_ranks_may_differ(tmp_path: Path) -> None:
    trained = llama_like(RAGGED)
    found = levels(write(trained, tmp_path / "out"), trained)
    right = {"peft", "transformers", "vllm_0_31", "vllm_0_32"}
    assert {name for name, level in found.items() if level == {"ok"}} == right
    assert {name for name, level in found.items() if "error" in level} == {"sglang", "llama_cpp", "lorax"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_uniform_is_right_everywhere(tmp_path: Path, dtype: torch.dtype) -> None:
    trained = llama_like(RAGGED)
    found = levels(write(trained, tmp_path / "out", layout="uniform", pad_to=8, dtype=dtype), trained)
    assert found == {name: {"ok"} for name in NAMES}


def test_uniform_without_padding_is_right_but_for_lorax_kernels(tmp_path: Path) -> None:
    trained = llama_like(RAGGED)
    out = write(trained, tmp_path / "out", layout="uniform")
    found = levels(out, trained)
    assert found.pop("lorax") == {"warning"}
    assert set(map(tuple, found.values())) == {("ok",)}
    assert "pad_to=8" in of(out, "lorax", trained)[0].message


@pytest.mark.parametrize("rank", [1, 6, 8, 12, 16, 17, 32])
def test_lorax_is_exact_at_8_and_multiples_of_16_and_at_the_rank_that_it_names(tmp_path: Path, rank: int) -> None:
    """As the table of docs/export.md has it."""
    trained = adapter(dict.fromkeys(("model.layers.0.q_proj", "model.layers.0.v_proj"), rank), start=rank)
    (finding,) = of(write(trained, tmp_path / "out", layout="uniform"), "lorax", trained)
    assert (finding.level == "ok") == (rank == 8 or rank % 16 == 0)
    if finding.level != "ok":
        padded = int(finding.message.split("pad_to=")[1].split()[0])
        assert f"{rank / padded:.3g} times" in finding.message
        exact = write(trained, tmp_path / "padded", layout="uniform", pad_to=padded)
        assert {item.level for item in of(exact, "lorax", trained)} == {"ok"}


def test_a_classic_adapter_is_right_everywhere(tmp_path: Path) -> None:
    folder, trained = classic(tmp_path / "out")
    assert levels(folder) == {name: {"ok"} for name in NAMES}
    assert levels(folder, doubled(trained)) == {name: {"ok"} for name in NAMES}


def test_rank_pattern_without_alpha_pattern(tmp_path: Path) -> None:
    """PEFT scales each module by alpha / its own rank; old vLLM by alpha / r, llama.cpp as PEFT does."""
    out = write(llama_like(RAGGED), tmp_path / "out")
    change(out, alpha_pattern={}, lora_alpha=8)
    found = levels(out)
    assert found["peft"] == found["transformers"] == found["vllm_0_32"] == found["llama_cpp"] == {"ok"}
    old = of(out, "vllm_0_31")
    wrong = {module: finding.message for finding in old for module in finding.modules if finding.level == "error"}
    assert set(wrong) == {"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"}
    # Rank 1 in place of r = 4: scale 2 in place of 8.
    assert "0.25 times" in wrong["model.layers.0.self_attn.v_proj"]
    assert "uniform" in wrong["model.layers.0.self_attn.v_proj"]


def test_the_wrong_scale_is_found_against_the_trained_update(tmp_path: Path) -> None:
    trained = llama_like(RAGGED)
    out = write(trained, tmp_path / "out", layout="uniform", pad_to=8)
    findings = lint(out, truth=doubled(trained, 1.03125))
    assert {finding.level for finding in findings} == {"error"}
    assert all("0.9697 times" in finding.message for finding in findings)
    assert [finding.engine for finding in findings] == NAMES
    assert set(concerned(findings)) == {path for path, rank in trained.ranks.items() if rank}
    # The folder itself is wrong, so what is read from it and written again is, too.
    assert all("uniform" not in finding.message and "export the trained model again" in finding.message for finding in findings)


def test_a_damaged_factor_is_another_update(tmp_path: Path) -> None:
    trained = llama_like(RAGGED)
    out = write(trained, tmp_path / "out", layout="uniform", pad_to=8)
    tensors = tensors_of(out)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"][0] *= -1
    findings = lint(put(out, tensors), truth=trained)
    assert [finding.engine for finding in findings] == NAMES
    assert {(finding.level, finding.module) for finding in findings} == {("error", "model.layers.0.self_attn.q_proj")}
    assert all("another update" in finding.message for finding in findings)


def test_a_missing_module_is_found_against_the_trained_update(tmp_path: Path) -> None:
    trained = llama_like([2] * 6)
    out = write(trained, tmp_path / "out", layout="uniform", pad_to=8)
    gone = "model.layers.2.self_attn.v_proj"
    put(out, {key: tensor for key, tensor in tensors_of(out).items() if gone not in key})
    assert {(finding.level, finding.module) for finding in of(out, "peft", trained)} == {("error", gone)}
    # What was written is all there is to know without the trained adapter.
    assert {finding.level for finding in of(out, "peft")} == {"ok"}


def test_llama_cpp_takes_each_tensor_s_own_rank(tmp_path: Path) -> None:
    trained = llama_like(RAGGED)
    findings = of(write(trained, tmp_path / "out"), "llama_cpp", trained)
    wrong = {module: finding.message for finding in findings for module in finding.modules}
    assert "4 times" in wrong["model.layers.0.self_attn.v_proj"]
    assert "1.333 times" in wrong["model.layers.0.self_attn.q_proj"]
    assert "model.layers.2.self_attn.q_proj" not in wrong


def test_llama_cpp_stops_at_a_trained_head(tmp_path: Path) -> None:
    out = write(adapter({"model.layers.0.q_proj": 2}, heads={"score.weight": torch.ones(2, 8)}), tmp_path / "out")
    assert "score.weight" in of(out, "llama_cpp")[0].message


@pytest.mark.parametrize("engine", ["llama_cpp", "sglang"])
def test_engines_that_do_not_know_rslora(tmp_path: Path, engine: str) -> None:
    folder, _ = classic(tmp_path / "out", use_rslora=True)
    assert levels(folder)["peft"] == levels(folder)["vllm_0_31"] == levels(folder)["lorax"] == {"ok"}
    messages = [finding.message for finding in of(folder, engine) if finding.level == "error"]
    assert messages
    assert all("0.3536 times" in message for message in messages)


def test_lorax_drops_a_projection_that_one_layer_lacks(tmp_path: Path) -> None:
    trained = llama_like([8, 8, 0, 8, 8, 8])
    findings = of(write(trained, tmp_path / "out"), "lorax", trained)
    assert concerned(findings) == ["model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj"]
    assert "dropped in every layer" in findings[0].message
    assert "layout='uniform'" in findings[0].message
    assert {finding.level for finding in of(write(trained, tmp_path / "uniform", layout="uniform"), "lorax", trained)} == {"ok"}


def test_lorax_misses_a_last_layer_that_died(tmp_path: Path) -> None:
    out = write(llama_like([8, 8, 8, 8, 0, 0]), tmp_path / "out")
    assert {finding.level for finding in of(out, "lorax")} == {"error"}
    # The side file is where the linter has it from, without the trained adapter.
    (out / "paring.json").unlink()
    assert {finding.level for finding in of(out, "lorax")} == {"ok"}


def test_lorax_cannot_stack_ranks_that_differ(tmp_path: Path) -> None:
    findings = of(write(llama_like([8, 8, 4, 8]), tmp_path / "out"), "lorax")
    assert findings[0].module is None
    assert "[4, 8]" in findings[0].message


def test_sglang_refuses_ranks_that_differ(tmp_path: Path) -> None:
    out = write(llama_like([8, 8, 4, 8]), tmp_path / "out")
    assert "rank_pattern" in of(out, "sglang")[0].message
    # Without the pattern the tensors still do not fit, and the folder can no longer be read and written again.
    message = of(change(out, rank_pattern={}, alpha_pattern={}), "sglang")[0].message
    assert "buffers" in message
    assert "uniform" not in message


def test_sglang_stacks_q_with_k_and_v(tmp_path: Path) -> None:
    q_alone = llama_like([8, 8, 8, 0])
    assert "v_proj" in of(write(q_alone, tmp_path / "q"), "sglang", q_alone)[0].message
    v_alone = llama_like([8, 8, 0, 8])
    findings = of(write(v_alone, tmp_path / "v"), "sglang", v_alone)
    assert "'model.layers.1.self_attn.v_proj' has no q_proj beside it" in findings[0].message
    up = llama_like([8] * 2, kinds=("mlp.up_proj",))
    assert {finding.level for finding in of(write(up, tmp_path / "up"), "sglang", up)} == {"error"}
    both = llama_like([8] * 4, kinds=("mlp.up_proj", "mlp.gate_proj"))
    assert {finding.level for finding in of(write(both, tmp_path / "both"), "sglang", both)} == {"ok"}


@pytest.mark.parametrize(
    ("rank", "level", "word"), [(16, "ok", ""), (17, "warning", "--max-lora-rank 32"), (300, "warning", "320"), (513, "error", "512")]
)
def test_vllm_limits_the_rank(tmp_path: Path, rank: int, level: str, word: str) -> None:
    out = write(llama_like([2, 2]), tmp_path / "out", layout="uniform", pad_to=rank)
    for engine in ("vllm_0_31", "vllm_0_32"):
        findings = of(out, engine)
        assert {finding.level for finding in findings} == {level}
        assert word in findings[0].message


def test_vllm_0_32_tests_the_largest_rank_named_anywhere(tmp_path: Path) -> None:
    out = change(write(llama_like([2, 1]), tmp_path / "out"), rank_pattern={**config_of(tmp_path / "out")["rank_pattern"], "unused": 999})
    assert {finding.level for finding in of(out, "vllm_0_32")} == {"error"}
    assert {finding.level for finding in of(out, "vllm_0_31")} == {"ok"}


@pytest.mark.parametrize(
    ("keys", "refuse"),
    [
        ({"use_dora": True}, {"vllm_0_31", "vllm_0_32", "sglang", "lorax"}),
        ({"bias": "all"}, {"vllm_0_31", "vllm_0_32"}),
        ({"lora_bias": True}, {"vllm_0_32"}),
        ({"layer_replication": [[0, 1]]}, {"vllm_0_32"}),
        ({"init_lora_weights": "pissa_niter_4"}, {"vllm_0_32"}),
        ({"modules_to_save": ["lm_head"]}, {"vllm_0_31", "vllm_0_32"}),
    ],
)
def test_what_engines_refuse(tmp_path: Path, keys: dict[str, Any], refuse: set[str]) -> None:
    folder, _ = classic(tmp_path / "out", **keys)
    assert {name for name, level in levels(folder).items() if "error" in level} == refuse


def test_a_gate_in_the_file_is_an_extra_tensor(tmp_path: Path) -> None:
    out = write(llama_like([8, 8]), tmp_path / "out")
    put(out, {**tensors_of(out), "base_model.model.model.layers.0.self_attn.q_proj.gate": torch.ones(8)})
    found = levels(out)
    assert found["vllm_0_31"] == found["vllm_0_32"] == found["llama_cpp"] == {"error"}
    assert found["peft"] == {"warning"}


def test_heads(tmp_path: Path) -> None:
    out = write(adapter({"model.layers.0.q_proj": 8}, heads={"score.weight": torch.ones(2, 8)}, task_type="SEQ_CLS"), tmp_path / "out")
    found = levels(out)
    assert found["peft"] == found["transformers"] == found["vllm_0_32"] == {"ok"}
    assert found["vllm_0_31"] == found["lorax"] == {"warning"}
    without = write(adapter({"layer.0.query": 8}, task_type="SEQ_CLS"), tmp_path / "without")
    assert levels(without)["peft"] == {"warning"}
    assert levels(without)["transformers"] == {"ok"}


def test_tensors_that_the_configuration_does_not_target_are_ignored(tmp_path: Path) -> None:
    trained = llama_like([8, 8])
    out = change(write(trained, tmp_path / "out"), target_modules=["q_proj"])
    for engine in ("peft", "transformers"):
        assert [finding.module for finding in of(out, engine, trained)] == ["model.layers.0.self_attn.v_proj"]
    assert {finding.level for finding in of(out, "vllm_0_32", trained)} == {"ok"}


def test_a_configuration_that_no_engine_reads(tmp_path: Path) -> None:
    trained = llama_like([8, 8])
    out = change(write(trained, tmp_path / "out"), r=0)
    assert {name for name, level in levels(out, trained).items() if level == {"error"}} == set(NAMES)
    with pytest.raises(AdapterError, match="r = 0"):
        lint(out)
    wider = Factors(a=torch.ones(2, 9), b=torch.ones(6, 2))
    with pytest.raises(AdapterError, match="another model"):
        lint(change(out, r=8), truth=Adapter(modules={"model.layers.0.self_attn.q_proj": wider}))


def test_findings_of_one_reason_are_one_finding(tmp_path: Path) -> None:
    paths = [f"bert.encoder.layer.{index}.query" for index in range(5)]
    (finding,) = of(write(adapter(dict.fromkeys(paths, 8)), tmp_path / "out", layout="uniform"), "sglang")
    assert finding.modules == tuple(paths)
    assert finding.module is None
    assert f"5 modules: {paths[0]!r}, {paths[1]!r}, {paths[2]!r} and 2 more." in finding.message
    (alone,) = of(write(adapter({paths[0]: 8}), tmp_path / "alone", layout="uniform"), "sglang")
    assert (alone.module, alone.modules) == (paths[0], (paths[0],))


def test_no_layout_is_advised_against_what_none_cures(tmp_path: Path) -> None:
    """Modules that SGLang has no place for, and modules that were never adapted, stay what they are in the uniform layout."""
    for layout in LAYOUTS:
        outside = of(write(adapter({"bert.encoder.layer.0.query": 8}), tmp_path / f"outside-{layout}", layout=layout), "sglang")
        assert [("uniform" in finding.message, "paring fuse" in finding.message) for finding in outside] == [(False, True)]
        for kind in ("self_attn.q_proj", "mlp.up_proj"):
            alone = of(write(llama_like([8, 8], kinds=(kind,)), tmp_path / f"{kind}-{layout}", layout=layout), "sglang")
            assert [("uniform" in finding.message, "target_modules" in finding.message) for finding in alone] == [(False, True)]
        for last in (8, 4):
            gap = adapter({"model.layers.0.mlp.up_proj": 8, "model.layers.2.mlp.up_proj": last})
            (dropped,) = of(write(gap, tmp_path / f"gap-{last}-{layout}", layout=layout), "lorax")
            assert "knows nothing of 'model.layers.1.mlp.up_proj'" in dropped.message
            assert "uniform" not in dropped.message
    # Nor against the pattern of a compact adapter that SGLang would not serve in the other layout either.
    (refused,) = of(write(adapter({"bert.layer.0.query": 8, "bert.layer.1.query": 4}), tmp_path / "ragged"), "sglang")
    assert "rank_pattern" in refused.message
    assert "whatever the layout" in refused.message
    assert "uniform" not in refused.message


def test_the_uniform_layout_is_advised_where_it_helps(tmp_path: Path) -> None:
    trained = llama_like([8, 8, 8, 0, 0, 8])  # no v_proj beside a q_proj, and no q_proj beside a v_proj
    compact = write(trained, tmp_path / "compact")
    uniform = write(read(compact), tmp_path / "uniform", layout="uniform")
    for engine in NAMES:
        advised = [finding for finding in of(compact, engine) if "layout='uniform'" in finding.message]
        assert bool(advised) == (engine in ("sglang", "lorax"))
        assert {finding.level for finding in of(uniform, engine)} == {"ok"}


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    out = write(llama_like([8, 8]), tmp_path / "out")
    with pytest.raises(AdapterError, match="IA3"):
        lint(change(out, peft_type="IA3"))
    with pytest.raises(AdapterError, match="no LoRA factors"):
        lint(put(change(out, peft_type="LORA"), {"x": torch.ones(1)}))


def test_every_rule_names_its_source() -> None:
    assert len(BY_NAME) == len(ALL) == 7
    for engine in ALL:
        assert "read" in engine.source, engine.name


def test_dora_without_magnitudes_is_told(tmp_path: Path) -> None:
    folder, _ = classic(tmp_path / "out", use_dora=True)
    (finding,) = [finding for finding in of(folder, "peft") if "magnitudes" in finding.message]
    assert finding.level == "warning"


def test_a_strange_tensor_in_a_layer_stops_sglang(tmp_path: Path) -> None:
    folder, _ = classic(tmp_path / "out")
    put(folder, {**tensors_of(folder), "base_model.model.model.layers.0.self_attn.q_proj.gate": torch.zeros(3)})
    assert "neither lora_A nor lora_B" in of(folder, "sglang")[0].message
