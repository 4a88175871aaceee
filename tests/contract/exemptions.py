"""What a method need not do, and why. This is the only such table; the docs print it.

A test that is listed here must fail: an exemption that is not needed, or that names no test, is an error.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from tests.contract.cases import GROUPS, Case, has_gates

WITHOUT_GATES = "any method without gates"
EVERY_MODEL = "every model"

_NO_GATES = "every rank of it lives until the end: it has no gates, so nothing can be exactly zero"

_FROM_THE_MATRIX = "its start is read off the weight or a gradient of it: nothing is drawn"
_NOISE = "its core starts at the noise that its authors give it, not at zero"
_FIRST_OF_ITS_SHAPE = "the factors of a shape start by the name of the first of its modules, and lie there"
_FIRST_STEP = "it starts at the first step of full fine-tuning, not at zero"

_NO_CONV1D = "PEFT's SHiRA takes nn.Linear only, so there is nothing to export to; the checkpoint and the merged model are exact"
_LOSES_PLACES = "transformers' load_adapter loads the values of PEFT's SHiRA and not their places; PeftModel.from_pretrained loads both"
_NOT_ADDED = "its output is no sum of base and update, since the rows have lengths of their own; test_dora.py shows what it is"
_HELD = "the length that is divided by is held constant in the backward, so its gradient is not the dense model's; it is PEFT's"

EXEMPTIONS: Mapping[tuple[str, str, str], str] = MappingProxyType(
    {
        ("test_pruning_zeros_makes_shapes_smaller", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_the_exported_adapter_has_mixed_ranks_and_an_emptied_module", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_an_adapter_without_a_rank_is_not_exported", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_an_adapter_that_no_proximal_step_touched_is_not_exported", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_ranks_die_in_the_run_and_stay_dead_over_a_restart", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_every_way_takes_one_proximal_step_and_keeps_zeros", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_a_gate_without_gradient_dies_after_the_steps_that_the_threshold_asks_for", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_a_step_without_a_forward_shrinks_nothing", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_gates_written_from_outside_are_honoured", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_a_module_emptied_from_outside_leaves_the_base", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_a_shared_module_gets_one_proximal_step", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_gates_are_named_gate", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
        ("test_other_seed_other_bits", "pissa", EVERY_MODEL): _FROM_THE_MATRIX,
        ("test_other_seed_other_bits", "olora", EVERY_MODEL): _FROM_THE_MATRIX,
        ("test_other_seed_other_bits", "lora_ga", EVERY_MODEL): _FROM_THE_MATRIX,
        ("test_other_seed_other_bits", "lora_sb", EVERY_MODEL): _FROM_THE_MATRIX,
        ("test_output_unchanged_at_attach", "lora_sb", EVERY_MODEL): _FIRST_STEP,
        ("test_training_output_unchanged_at_attach", "lora_sb", EVERY_MODEL): _FIRST_STEP,
        ("test_output_unchanged_at_attach", "lora_xs", EVERY_MODEL): _NOISE,
        ("test_training_output_unchanged_at_attach", "lora_xs", EVERY_MODEL): _NOISE,
        ("test_output_unchanged_when_a_second_adapter_is_attached", "lora_xs", EVERY_MODEL): _NOISE,
        ("test_export_loads_in_stock_peft", "shira", "gpt2"): _NO_CONV1D,
        ("test_the_exported_configuration_has_no_trace_of_us", "shira", "gpt2"): _NO_CONV1D,
        ("test_what_was_exported_reads_back_as_the_live_adapter", "shira", "gpt2"): _NO_CONV1D,
        ("test_exports_from_a_model_that_transformers_adapted", "shira", "gpt2"): _NO_CONV1D,
        ("test_export_loads_in_plain_transformers", "shira", EVERY_MODEL): _LOSES_PLACES,
        ("test_the_linter_finds_no_fault_on_behalf_of_peft_and_transformers", "shira", EVERY_MODEL): _LOSES_PLACES,
        ("test_gradients_are_those_of_the_dense_model", "dora", EVERY_MODEL): _HELD,
        ("test_gradients_of_several_calls_add_up", "dora", EVERY_MODEL): _HELD,
        ("test_pruning_zeros_keeps_the_output", "dora", EVERY_MODEL): _NOT_ADDED,
        ("test_pruning_zeros_keeps_the_output_but_for_rounding", "dora", EVERY_MODEL): _NOT_ADDED,
        ("test_two_active_adapters_add_up", "dora", EVERY_MODEL): _NOT_ADDED,
        ("test_a_module_starts_by_its_name_alone", "s2_lora", "bert"): _FIRST_OF_ITS_SHAPE,
        ("test_a_module_starts_by_its_name_alone", "s2_lora", "llama"): _FIRST_OF_ITS_SHAPE,
        ("test_a_module_starts_by_its_name_alone", "s2_lora", "gpt2"): _FIRST_OF_ITS_SHAPE,
        ("test_a_module_starts_by_its_name_alone", "s2_lora", "twin"): _FIRST_OF_ITS_SHAPE,
        ("test_gates_stay_float32_whatever_the_model_is_cast_to", WITHOUT_GATES, EVERY_MODEL): _NO_GATES,
    }
)
"""(test, method, model) -> reason. The method may be :data:`WITHOUT_GATES`, the model :data:`EVERY_MODEL`."""


def keys_of(test: str, case: Case) -> Iterator[tuple[str, str, str]]:
    """The keys that would exempt a case from a test."""
    for method in (case.method_name, *(() if has_gates(case.method_name) else (WITHOUT_GATES,))):
        for model in (case.kind.name, EVERY_MODEL):
            yield test, method, model


def reason_for(test: str, case: Case) -> str | None:
    """Why a case is exempt from a test; ``None`` if it is not."""
    return next((EXEMPTIONS[key] for key in keys_of(test, case) if key in EXEMPTIONS), None)


@functools.cache
def contract_tests() -> Mapping[str, str]:
    """Every contract test, and the group of cases that it is run for, as their files have them."""
    found: dict[str, str] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                groups = [argument.arg for argument in node.args.args if argument.arg in GROUPS]
                if groups:
                    assert node.name not in found, f"two contract tests are named {node.name}"
                    found[node.name] = groups[0]
    return MappingProxyType(found)


def exemption_rows() -> list[tuple[str, str, str, str]]:
    """What the docs print: test, method, model, reason."""
    return [(test, method, model, reason) for (test, method, model), reason in sorted(EXEMPTIONS.items())]


def property_rows() -> list[tuple[str, tuple[str, ...]]]:
    """What the docs print: every contract test with the titles of the models that it is run on."""
    return [(test, tuple(dict.fromkeys(case.kind.title for case in GROUPS[group]))) for test, group in contract_tests().items()]
