"""The prose keeps its word: snippets run, commands parse, tables and the figure are those of the code."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

import paring
from paring.attach.find import layers, slots
from paring.cli.commands.study import FINDINGS
from paring.cli.main import main
from paring.cli.study.build import build
from paring.cli.study.text import read_text
from paring.core.errors import TargetError
from paring.core.prox import released_threshold, soft_threshold
from paring.methods.lora import LoRA
from paring.methods.shira import SHiRA
from paring.methods.sora import SoRA
from paring.study.page import render_study
from paring.study.tables import results_table
from paring.train import Scores, create_optimizer, sparsify
from tests.study.samples import entry, findings, usual
from tests.trust.grids import GRIDS
from tools import figures, studies, tables

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "studies").glob("*.md")])
FENCE = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, kind: str) -> list[str]:
    """The code blocks of one kind, without those that are pulled in from elsewhere."""
    return [match["text"] for match in FENCE.finditer(page.read_text()) if match["kind"] == kind and "--8<--" not in match["text"]]


@pytest.fixture(scope="module")
def small() -> Iterator[Any]:
    """The examples' helper, which makes its encoder by itself: tiny, whatever is installed."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import small as helper
    finally:
        sys.path.pop(0)
    before = helper.find_spec
    helper.find_spec = lambda name: None
    yield helper
    helper.find_spec = before
    del sys.modules["small"]


@pytest.fixture
def reader(small: Any, tmp_path: Path) -> dict[str, Any]:
    """What the snippets take for granted."""
    base = small.encoder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(base)

    def batch(seed: int) -> dict[str, torch.Tensor]:
        rows = small.rows(4, seed)
        return {
            **tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt"),
            "labels": torch.tensor([row["label"] for row in rows]),
        }

    def train(model: Any) -> None:
        optimizer = create_optimizer(model, lr=1e-3)
        model.train()
        for item in batches:
            model(**item).loss.backward()
            optimizer.step()

    def accuracy(model: Any, items: list[dict[str, torch.Tensor]]) -> float:
        model.eval()
        with torch.inference_mode():
            return float(torch.cat([model(**item).logits.argmax(-1) == item["labels"] for item in items]).float().mean())

    torch.manual_seed(0)
    batches = [batch(seed) for seed in range(3)]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    return {
        "base": base,
        "base_decoder": small.decoder(tmp_path),
        "base_model": copy.deepcopy(model),
        "model": model,
        "tokenizer": tokenizer,
        "folder": tmp_path,
        "batches": batches,
        "held_out": [batch(9)],
        "train": train,
        "accuracy": accuracy,
    }


def run(page: str, known: dict[str, Any], wanted: Callable[[str], bool] = lambda text: True) -> dict[str, Any]:
    """Run a page's blocks one after another, as a reader would."""
    for number, text in enumerate(blocks(ROOT / page, "python"), 1):
        if wanted(text):
            exec(compile(text, f"{page}, block {number}", "exec"), known)
    return known


def test_readme_runs(reader: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = run("README.md", reader)
    assert isinstance(known["model"], peft.PeftModel)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_first_page_runs(reader: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("docs/index.md", reader)
    assert (tmp_path / "adapter").is_dir()


def test_from_lora_config_runs(reader: dict[str, Any]) -> None:
    known = run("docs/from-lora-config.md", reader)
    assert isinstance(known["config"], paring.ParingConfig)


@pytest.mark.filterwarnings("ignore:.*have no gradient")
def test_starts_page_runs(reader: dict[str, Any]) -> None:
    known = run("docs/starts.md", reader)
    assert min(known["norms"].values()) > 0
    assert set(paring.read(reader["folder"] / "two").ranks.values()) == {2}


def test_sparse_page_runs(reader: dict[str, Any]) -> None:
    for name, seed in (("first_sparse", 1), ("second_sparse", 2)):
        model = paring.adapt(copy.deepcopy(reader["base_model"]), SHiRA(rank=2), task_type="SEQ_CLS", seed=seed)
        reader["train"](model)
        paring.export(model, reader["folder"] / name)
    torch.manual_seed(0)
    known = run("docs/sparse.md", reader)
    state = known["plain"].state_dict()
    encoder = {name: value for name, value in reader["base_model"].state_dict().items() if not name.startswith("classifier")}
    assert all(torch.equal(state[name], value) for name, value in encoder.items())
    assert known["model"].base_model.model.get_submodule(next(iter(paring.ranks(known["model"])))).slot("default").wants is None


def test_merging_page_runs(reader: dict[str, Any]) -> None:
    for seed, name in enumerate(("questions", "reviews")):
        model = paring.adapt(copy.deepcopy(reader["base_model"]), LoRA(rank=4), task_type="SEQ_CLS", seed=seed)
        reader["train"](model)
        paring.export(model, reader["folder"] / name)
    known = run("docs/merging.md", reader)
    assert known["merged"].heads == {}
    assert 0 < known["merged"].max_rank <= 8
    model, own = known["model"], known["adapters"][0].heads
    assert all(torch.equal(model.get_base_model().get_parameter(name), tensor) for name, tensor in own.items())
    with torch.inference_mode():
        logits = model.eval()(**reader["batches"][0]).logits
        with model.disable_adapter():
            assert not torch.equal(model(**reader["batches"][0]).logits, logits)


@pytest.mark.filterwarnings("ignore")
def test_recipes_run(reader: dict[str, Any]) -> None:
    known = run("docs/recipes.md", reader, lambda text: "BitsAndBytesConfig" not in text)
    assert known["logits"].shape == (3, 2)
    assert [stage.index for stage in known["stages"]] == [0, 1, 2]


@pytest.mark.filterwarnings("ignore")
def test_recipe_for_4_bit_runs_trains_and_leaves(reader: dict[str, Any]) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit base models need bitsandbytes, which is not installed")
    known = run("docs/recipes.md", reader, lambda text: "BitsAndBytesConfig" in text)
    model, words = known["model"], torch.tensor([[2, 5, 7, 6, 3]])
    assert {type(layer.get_base_layer()).__name__ for layer in layers(model).values()} == {"Linear4bit"}
    optimizer = create_optimizer(model, lr=1e-2)
    model.train()
    for _ in range(3):
        model(input_ids=words, labels=words).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {int(slot.steps) for slot in slots(model).values()} == {3}
    with pytest.raises(TargetError, match="quantised"):
        model.merge_and_unload()
    paring.export(model, reader["folder"] / "four")
    base = known["AutoModelForCausalLM"].from_pretrained(reader["base_decoder"], quantization_config=known["quantisation"])
    loaded = PeftModel.from_pretrained(base, reader["folder"] / "four").eval()
    with torch.inference_mode():
        assert torch.allclose(model.eval()(input_ids=words).logits, loaded(input_ids=words).logits, atol=1e-5)


def test_export_page_runs(reader: dict[str, Any]) -> None:
    reader["model"] = paring.adapt(reader["model"], SoRA(rank=4), task_type="SEQ_CLS")
    reader["train"](reader["model"])
    known = run("docs/export.md", reader)
    # The fused model, the layouts and the rewritten one are one and the same.
    with torch.inference_mode():
        outputs = [known["fused"].eval()(**reader["batches"][0]).logits]
        for name, tolerance in (("compact", 1e-5), ("again", 1e-5), ("uniform", 2e-2)):
            base = AutoModelForSequenceClassification.from_pretrained(reader["base"], num_labels=2)
            loaded = PeftModel.from_pretrained(base, reader["folder"] / name).eval()
            assert torch.allclose(outputs[0], loaded(**reader["batches"][0]).logits, atol=tolerance), name


def test_released_page_runs(reader: dict[str, Any]) -> None:
    released = run("docs/released-code.md", reader)["released"]
    model = paring.adapt(reader["model"], released, exclude_modules=["classifier"], modules_to_save=["output.LayerNorm"])
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "classifier" in name)
    assert {group["lr"] for group in create_optimizer(model, lr=8e-4).param_groups} == {8e-4}
    # A later stage as released: the factors stand still, the gates shrink by the threshold at each of the three steps.
    with torch.no_grad():
        for slot in slots(model).values():
            slot.gate.fill_(1.0)
    before = {name: slot.A.clone() for name, slot in slots(model).items()}

    def stage(index: int, penalty: float) -> None:
        optimizer = create_optimizer(model, lr=0.0)
        model.train()
        for batch in reader["batches"]:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    sparsify(model, (0.125,), stage, lambda: Scores(train=1.0, validation=1.0))
    for name, slot in slots(model).items():
        assert torch.equal(slot.A, before[name])
        assert torch.equal(slot.gate, torch.full((8,), 1.0 - 3 * 0.125))


@pytest.fixture
def trainee(reader: dict[str, Any]) -> dict[str, Any]:
    """What the pages with trainers take for granted beside that."""
    rows = [{key: value[index] for key, value in batch.items()} for batch in reader["batches"] for index in range(4)]
    common = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "per_device_train_batch_size": 1}
    common["output_dir"] = str(reader["folder"] / "out")

    def arguments(**given: Any) -> TrainingArguments:
        return TrainingArguments(**{**common, **given})

    more = {"arguments": arguments, "args": arguments(max_steps=20), "data": rows, "epochs": 5}
    return {**reader, **more, "loader": reader["batches"]}


@pytest.mark.filterwarnings("ignore")
def test_budget_page_runs(trainee: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The snippets' budget is that of a model of use; the tests' one starts with a few hundred parameters.
    monkeypatch.setattr("paring.parts.allocate.budget.Parameters.parameters", lambda self, start: self.count // 200)
    first, second = blocks(ROOT / "docs/budget.md", "python")
    known = trainee
    exec(compile(first, "docs/budget.md, block 1", "exec"), known)
    assert paring.read("adapter").parameters <= 200
    known["model"] = paring.adapt(copy.deepcopy(known["base_model"]), known["Spectral"](rank=4), task_type="SEQ_CLS")
    exec(compile(second, "docs/budget.md, block 2", "exec"), known)
    assert 0 < paring.snapshot(known["model"]).parameters < sum(4 * slot.cost for slot in slots(known["model"]).values())


@pytest.mark.filterwarnings("ignore")
def test_lisa_page_runs(trainee: dict[str, Any]) -> None:
    known = run("docs/lisa.md", trainee)
    assert all(parameter.requires_grad for parameter in known["tuned"].parameters())
    folder, shown = trainee["folder"], trainee["batches"][0]
    tuned, first, plain = (
        AutoModelForSequenceClassification.from_pretrained(place, num_labels=2).eval()
        for place in (folder / "trained", folder / "tuned", trainee["base"])
    )
    state = plain.state_dict()
    for other in (tuned, first):
        assert not torch.equal(state["bert.embeddings.word_embeddings.weight"], other.bert.embeddings.word_embeddings.weight)
    found = known["found"]
    assert 0 < found.adapter.max_rank <= 8
    loaded = PeftModel.from_pretrained(plain, folder / "lora").eval()
    with torch.inference_mode():
        assert torch.isfinite(loaded(**shown).logits).all()
    updates = {f"{path}.weight": factors.materialise() for path, factors in found.adapter.modules.items()}
    assert all(
        float((tuned.state_dict()[name] - state[name] - update).norm()) < float((tuned.state_dict()[name] - state[name]).norm())
        for name, update in updates.items()
    )


@pytest.mark.filterwarnings("ignore")
def test_tolerance_page_runs(trainee: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = run("docs/tolerance.md", trainee)["path"]
    assert path.chosen is not None
    assert paring.read("adapter").parameters == path.chosen.parameters
    assert paring.read(path.adapter(path.stages[1])).parameters <= path.stages[0].parameters // 2


@pytest.mark.filterwarnings("ignore")
def test_forgetting_page_runs(trainee: dict[str, Any]) -> None:
    known = run("docs/forgetting.md", trainee)
    assert set(paring.read(trainee["folder"] / "adapter").ranks.values()) == {8}
    batch = {key: value for key, value in trainee["batches"][0].items() if key != "labels"}
    for prototypes in (None, known["prototypes"]):
        loss = known["Forgetting"](classes=(1,), prototypes=prototypes)(known["model"](**batch), trainee["batches"][0]["labels"])
        assert torch.isfinite(loss)
        assert loss.requires_grad


def test_table_of_the_operators_is_what_they_compute() -> None:
    text = (ROOT / "docs/released-code.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| t = 0.1", "| `exact`", "| `released`"))]
    head, exact, released = lines
    gates = torch.tensor([float(cell) for cell in head[1:]])
    for row, operator in ((exact, soft_threshold), (released, released_threshold)):
        assert [f"{value:.2f}".replace("0.00", "0") for value in operator(gates, 0.1).tolist()] == row[1:]


def test_longest_step_of_adam_is_what_the_concept_says() -> None:
    text = " ".join((ROOT / "docs/concept.md").read_text().split())
    said = re.search(r"at most (\S+) rate long for betas \(0.98, 0.98\) and (\S+) rates for \(0.9, 0.999\)", text)
    assert said is not None
    assert SoRA().gate_memory == 0.98
    for value, (first, second) in zip(said.groups(), ((0.98, 0.98), (0.9, 0.999)), strict=True):
        gate = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        optimizer = torch.optim.Adam([gate], lr=1.0, betas=(first, second), eps=0.0)
        grown, steps = second / first, 2000 if second == 0.999 else 400
        for step in range(steps):
            # The gradients that grow so end at 1; those before the last few hundred are nothing to speak of.
            gate.grad = torch.tensor(max(grown ** (step + 1 - steps), 1e-120), dtype=torch.float64)
            before = gate.item()
            optimizer.step()
        bound = (1 - first) / ((1 - second) * (1 - first**2 / second)) ** 0.5
        assert -1e-9 <= float(value) - bound < 0.05
        if second == 0.98:  # the long memory has its bias correction for longer than this test may run
            assert abs(gate.item() - before) == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("page", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"], ids=lambda page: page.name)
def test_what_is_to_be_put_in_is_put_in(page: Path) -> None:
    """A formatter that takes a snippet's marker for Python breaks it, and the site shows the marker in place of the code."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("--8"):
            assert re.fullmatch(r'\s*--8<-- "[^"]+"', line), line


def test_every_field_of_lora_config_is_told() -> None:
    text = (ROOT / "docs/from-lora-config.md").read_text()
    told = {name for line in text.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)[=`]", line.split(" | ")[0])}
    rows = {name for line in text.splitlines() if line.startswith("| `task_type`") for name in re.findall(r"`(\w+)`", line)}
    fields = {item.name for item in dataclasses.fields(peft.LoraConfig)}
    assert fields <= told | rows, f"docs/from-lora-config.md says nothing of {sorted(fields - told - rows)}"
    assert told <= fields | {"LoraConfig", "True"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    known: Mapping[str, type[Any]] = {"SoRA": SoRA, "ParingConfig": paring.ParingConfig}
    for name, inside in re.findall(r"`(SoRA|ParingConfig)\(([^`]*)\)`", text):
        given = set(re.findall(r"(\w+)=", re.sub(r"\([^()]*\)", "", inside)))
        assert given <= {item.name for item in dataclasses.fields(known[name])}, inside


@functools.cache
def help_of_all() -> str:
    """What all commands say of their flags."""
    # Other flags of a method's own are shown beside it.
    trained = ("train", "train --budget 1k", "train --method dora")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for command in (*trained, "path", "export", "extract", "merge", "verify", "predict", "eval", "fuse", "inspect", "study"):
            main([*command.split(), "--help"])
    return said.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_parse(page: Path) -> None:
    lines = [line for text in blocks(page, "sh") for line in text.replace("\\\n", " ").splitlines()]
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["paring"]:
            assert main([*words[1:], "--print_config"]) == 0, line
    flags = set(re.findall(r"`(--\w+)", page.read_text())) - {"--max", "--no"}
    helped = help_of_all()
    # The last two are accelerate's.
    assert {flag for flag in flags if flag not in helped} <= {"--debug", "--config", "--multi_gpu", "--use_fsdp"}


def test_figures_are_those_of_the_code() -> None:
    assert figures.main(["--check"]) == 0, "run python tools/figures.py"


def test_every_table_that_a_page_asks_for_is_made() -> None:
    asked = {name for page in PAGES for name in re.findall(r"<!-- table: ([\w-]+) -->", page.read_text())}
    assert asked == {
        *tables.CONTRACT,
        *tables.BENCHMARKS,
        *(f"{tables.TRUST}{key}" for key in GRIDS),
        *(f"{tables.STUDY}{key}" for key in studies.names()),
    }
    with pytest.raises(LookupError, match="no table 'other'"):
        tables.on_page_markdown("<!-- table: other -->")


def test_contract_tables_have_a_row_for_each_exemption_and_property() -> None:
    from tests.contract.exemptions import exemption_rows, property_rows

    assert tables.table("exemptions").count("\n") == 1 + len(exemption_rows())
    made = tables.table("properties").splitlines()
    assert len([line for line in made if line.startswith("| ")]) == 2 + len(property_rows())
    assert "| output unchanged at attach | all |" in made


def test_table_of_a_benchmark_holds_its_numbers_and_says_where_they_come_from(tmp_path: Path) -> None:
    environment = {
        "command": "python benchmarks/x.py",
        "date": "2000-01-01",
        "versions": {"torch": "1"},
        "machine": {"processor": "abacus", "cores": 2, "threads": 1, "accelerator": None},
    }
    cell = {"rate": 1e-3, "mean": 0.5, "sd": 0.01, "parameters": 1234.0, "share": 0.25, "paired_difference_points": -0.125}
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    assert "Not measured yet" in tables.table("sora-accuracy", results)
    (results / "sora-accuracy.json").write_text(json.dumps({**environment, "tables": {"trec": {"SoRA": cell}}}))
    made = tables.table("sora-accuracy", results)
    assert "| trec | SoRA | 0.001 | 50.00 ± 1.00 | 1,234 | 25% | -0.12 |" in made
    assert "Measured 2000-01-01 on abacus, 2 cores, 1 threads; torch 1. Repeated by `python benchmarks/x.py`." in made


def test_variants_of_the_cut_are_ordered_by_what_they_gain_over_all_sizes() -> None:
    def row(variant: str, share: float, *differences: float) -> dict[str, Any]:
        return {"task": "trec", "share": share, "variant": variant, "differences": list(differences)}

    found = [row("plain", 0.125, 0, 0), row("soft", 0.125, -1, 0.5), row("by loss", 0.125, 2, 0), row("plain", 0.0625, 0, 0)]
    found += [row("soft", 0.0625, -1, -1)]
    head, _, *body = tables.BENCHMARKS["tried"]({"plain": "plain", "rows": found}).splitlines()
    assert head == "| variant | trec, 1/8 of LoRA r 8 | trec, 1/16 of LoRA r 8 | all | better in |"
    assert body == [
        "| by loss | +1.00 [+0.00, +2.00] |  | +1.00 | 1 of 2 |",
        "| soft | -0.25 [-1.00, +0.50] | -1.00 [-1.00, -1.00] | -0.62 | 1 of 4 |",
    ]


def test_tables_of_a_study_hold_its_numbers_and_its_page_joins_the_site(tmp_path: Path) -> None:
    kept = tmp_path / "benchmarks" / "results" / "studies"
    assert studies.table("decoder-costs", kept) == "*Not measured yet: there is no `benchmarks/results/studies/decoder/findings.json`.*"
    assert not studies.pages(kept)
    found = usual()
    (kept / "decoder").mkdir(parents=True)
    (kept / "decoder" / FINDINGS).write_text(found.to_json(), encoding="utf-8")
    assert studies.pages(kept) == {"studies/decoder-report.html": render_study(found)}
    made = studies.table("decoder-results", kept)
    for task in found.metrics:
        for row in results_table(found, task, "x").rows:
            assert "| " + " | ".join(cell.text for cell in row) + " |" in made
    assert made.endswith("Repeated by `paring study small.yaml`.")
    with pytest.raises(LookupError, match="no table 'decoder-other' of a study"):
        studies.table("decoder-other", kept)


def test_a_cut_is_held_against_whom_the_tuning_rows_chose_of_its_size() -> None:
    def rival(ada: int, tuned: float) -> list[str]:
        found = findings(
            entry("LoRA r 8", "trec", [0.95, 0.95, 0.96], parameters=80_000, trials=(0.99,) * 4),
            entry("LoRA r 1", "trec", [0.90, 0.91, 0.92], parameters=10_000, trials=(0.8, 0.9, 0.85, 0.5)),
            entry("AdaLoRA", "trec", [0.93, 0.94, 0.95], parameters=ada, trials=(0.8, tuned, None, 0.5)),
            entry("cut to 12.5%", "trec", [0.91, 0.93, 0.92], parameters=10_000),
            entry("cut to 12.5%, longer steps", "trec", [0.99, 0.99, 0.99], parameters=10_000, trials=(1.0,) * 4),
        )
        (table,) = studies.rivals(found)
        return [cell.text for cell in table.rows[0]]

    assert rival(10_900, 0.85)[2:] == ["+1.00 [-1.48, +3.48]", "trec: LoRA r 1"]
    assert rival(10_900, 0.95)[2:] == ["-2.00 [-4.48, +0.48]", "trec: AdaLoRA"]
    assert rival(11_100, 0.95)[3] == "trec: LoRA r 1"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.name)
def test_studies_of_the_pages_are_accepted(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        if "contestants:" in text:
            (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
            assert build(read_text(tmp_path / "study.yaml"), {"base": "x", "data": "y"}).study.cells


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "studies").glob("*.yaml")), ids=lambda path: path.name)
def test_studies_of_the_benchmarks_are_accepted(path: Path) -> None:
    assert build(read_text(path), {"base": "x", "data": "y"}).study.runs > 10
