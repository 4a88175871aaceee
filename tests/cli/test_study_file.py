"""A study's file: what it means, and that what is wrong is told with its line before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from paring.cli.study.build import Built, build
from paring.cli.study.text import read_text
from paring.core.errors import SettingError
from paring.study.plan import Listed, Range, Sampler

GOOD = """\
name: small
settings:
  model_name_or_path: $base
  max_steps: 4
tasks:
  moods:
    dataset_name: $data
    metric: accuracy
  notes: {dataset_name: "$data/notes", metric: perplexity, task: causal-lm}
contestants:
  LoRA:
    method: lora
    rank: $rank
  cut:
    method: spectral
    budget: $share
  SoRA:
    method: sora
    search:
      penalty: {low: 0.1, high: 1}
  AdaLoRA:
    peft: {peft_type: ADALORA, init_r: 4}
    learning_rate: 2e-3
budgets:
  half: {rank: 2, share: 50%}
  all: {rank: 4, share: 100%}
search:
  learning_rate: [1e-3, 3e-3]
  trials: 5
  held: 0.2
seeds: [3, 5]
threads: 2
"""

SHORT = """\
tasks: {a: {dataset_name: x, model_name_or_path: y, metric: loss}}
contestants:
  b: {method: lora, learning_rate: 1e-3}
"""

NAMES = {"base": "there", "data": "here"}


def built(text: str, tmp_path: Path, names: dict[str, str] | None = None) -> Built:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return build(read_text(path), NAMES if names is None else names)


def test_a_file_is_contestants_on_tasks_at_budgets(tmp_path: Path) -> None:
    found = built(GOOD, tmp_path)
    study = found.study
    assert (study.name, study.seeds, found.threads) == ("small", (3, 5), 2)
    assert [cell.name for cell in study.cells] == [
        *("LoRA @ half on moods", "LoRA @ all on moods", "LoRA @ half on notes", "LoRA @ all on notes"),
        *("cut @ half on moods", "cut @ all on moods", "cut @ half on notes", "cut @ all on notes"),
        *("SoRA on moods", "SoRA on notes", "AdaLoRA on moods", "AdaLoRA on notes"),
    ]
    first = study.cells[0]
    assert first.settings["flags"] == {
        "model_name_or_path": "$base",  # what the command line says is no part of a run: its content is
        "max_steps": 4,
        "dataset_name": "$data",
        "method": "lora",
        "rank": 2,
    }
    rates = Listed(values=(1e-3, 3e-3))
    assert first.space == {"learning_rate": rates}
    assert study.cells[8].space == {"learning_rate": rates, "penalty": Range(low=0.1, high=1.0)}
    assert (study.cells[10].space, study.cells[10].settings["flags"]["learning_rate"]) == ({}, 2e-3)
    assert [study.search.count(cell.space) for cell in study.cells] == [2] * 8 + [5, 5, 0, 0]
    assert study.search.sampler_for(study.cells[8].space) is Sampler.GP
    assert (study.metrics["moods"].larger_is_better, study.metrics["notes"].larger_is_better) == (True, False)
    assert study.runs == 8 * 2 + 10 + 12 * 2


def test_it_may_be_short(tmp_path: Path) -> None:
    text = "tasks: {a: {dataset_name: x, model_name_or_path: y, metric: loss}}\ncontestants: {b: {method: lora, learning_rate: 1e-3}}\n"
    study = built(text, tmp_path, {}).study
    assert (study.name, study.seeds, study.runs) == ("study", (0, 1, 2), 3)


def test_a_rate_for_heads_where_there_is_none_is_told_with_its_line(tmp_path: Path) -> None:
    planted = SHORT.replace("dataset_name: x", "dataset_name: x, planted: {pattern: 0}").replace("metric: loss", "metric: rank_error")
    with pytest.raises(SettingError, match=r"line 3: planted ranks \('a'\) are learned without a head"):
        built(planted.replace("1e-3}", "1e-3, head_learning_rate: 1e-2}"), tmp_path, {})
    with pytest.raises(SettingError, match=r"line 1: planted ranks"):
        built(f"settings: {{head_learning_rate: 1e-2}}\n{planted}", tmp_path, {})
    with pytest.raises(SettingError, match="lisa trains the model's own weights, all at --learning_rate"):
        built(SHORT.replace("method: lora", "method: lisa, head_learning_rate: 1e-2"), tmp_path, {})


def test_a_grid_may_be_gone_beyond_and_its_last_values_are_tried_out(tmp_path: Path) -> None:
    text = SHORT.replace("learning_rate: 1e-3}", "search: {dropout: [0.1, 0.3]}, learning_rate: 1e-3}")
    assert built(f"search: {{widen: 1}}\n{text}", tmp_path, {}).study.runs == 2 + 1 + 3
    with pytest.raises(SettingError, match=r"line 4: b: dropout=2\.7"):
        built(f"search: {{widen: 2}}\n{text}", tmp_path, {})
    with pytest.raises(SettingError, match=r"line 1: widen=1 goes beyond a grid"):
        built(f"search: {{widen: 1, trials: 2}}\n{text}", tmp_path, {})
    with pytest.raises(SettingError, match=r"line 1: b: widen=1: dropout is a range"):
        built(f"search: {{widen: 1}}\n{text.replace('[0.1, 0.3]', '{low: 0.1, high: 0.3}')}", tmp_path, {})


def line_of(part: str) -> int:
    return next(number for number, line in enumerate(GOOD.splitlines(), 1) if part in line)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tasks:", "taks:", "unknown key 'taks'. Did you mean 'tasks'"),
        ("  max_steps: 4", "  max_stepz: 4", "Did you mean 'max_steps'"),
        ("  max_steps: 4", "  max_steps: four", "expected a whole number"),
        ("  max_steps: 4", "  max_steps: 0", "--max_steps 0: give at least 1"),
        ("  max_steps: 4", "  output_dir: x", "a study writes, evaluates and saves in its own way"),
        ("  max_steps: 4", "  seed: 3", "a study sets it for each run"),
        ("  max_steps: 4", "  tolerance: 1se", "a study writes"),
        ("    metric: accuracy", "    metric: acuracy", "Did you mean 'accuracy'"),
        ("    method: lora", "    method: loar", "Did you mean 'lora'"),
        ("    rank: $rank", "    rank: 0", "rank=0"),
        ("    rank: $rank", "    rank: $rnak", "Did you mean 'rank'"),
        ("    rank: $rank", "    rnak: 2", "Did you mean 'rank'"),
        ("    rank: $rank", "    penalty: 2", "--penalty is a setting of"),
        ("    budget: $share", "    budget: 300%", "at most 100%"),
        ("      penalty: {low: 0.1, high: 1}", "      penalty: {low: 1, high: 1}", "high=1.0"),
        ("      penalty: {low: 0.1, high: 1}", "      penalty: {low: 1}", "give both low and high"),
        ("      penalty: {low: 0.1, high: 1}", "      penalty: many", "give a list of numbers"),
        ("      penalty: {low: 0.1, high: 1}", "      penalti: [1, 2]", "Did you mean 'penalty'"),
        ("    peft: {peft_type", "    peft: {peft_typ", "PEFT has no such type"),
        ("ADALORA, init_r", "ADALORA, initial_rank", "ADALORA refuses these settings"),
        ("  learning_rate: [1e-3, 3e-3]", "  learning_rate: [3e-3, 1e-3]", "ascending"),
        ("  learning_rate: [1e-3, 3e-3]", "  learning_rate: [-1e-3, 3e-3]", "--learning_rate -0.001"),
        ("  learning_rate: [1e-3, 3e-3]", "  penalty: [1e-3, 3e-3]", "its own `search:`"),
        ("  learning_rate: [1e-3, 3e-3]", "  sampler: gird", "there is no sampler 'gird'"),
        ("  trials: 5", "  trials: 0", "trials=0"),
        ("  trials: 5", "  evaluations: 1", "prune=true needs"),
        ("  trials: 5", "  sampler: grid", "penalty is a range"),
        ("  held: 0.2", "  held: 2", "held=2"),
        ("seeds: [3, 5]", "seeds: [3, 3]", "holds one twice"),
        ("seeds: [3, 5]", "seeds: none", "give how many"),
        ("threads: 2", "threads: 0", "at least 1"),
        ("threads: 2", "seeds: 2", "stands here a second time"),
        ("name: small", "name: [", "no valid YAML"),
        ("    rank: $rank", "    rank: [$rank", "no valid YAML"),
        ("  LoRA:", "  AdaLoRA:", "stands here a second time"),
        ("  half: {rank: 2, share: 50%}", "  half: 5", "budget 'half' is 5; give names with values"),
        ("  half: {rank: 2, share: 50%}", "  half:", "budget 'half' is None"),
        ("  half: {rank: 2, share: 50%}", "  half: {rank: 2, share: 50%, size: 3}", "no contestant says $size"),
        ("    peft: {peft_type: ADALORA, init_r: 4}", "    peft:", "peft is empty"),
        ("  max_steps: 4", "  peft: {peft_type: LORA}", "it belongs to a contestant"),
        ("  max_steps: 4", "  metric: accuracy", "it belongs to a task"),
        ("  max_steps: 4", "  learning_rate: 0.5", "learning_rate is given here, and searched over in line 28"),
        ("  notes: {dataset", "  notes: {learning_rate: 0.5, dataset", "learning_rate is given here, and searched over in line 28"),
        ("    rank: $rank", "    metric: f1", "it belongs to a task"),
        ("    rank: $rank", "    planted: {pattern: 0}", "it belongs to a task"),
        ("  max_steps: 4", "  head_learning_rate: 0", "--head_learning_rate 0.0: give a finite number above 0"),
        ("    rank: $rank", "    max_steps: 9", "it is the same for all contestants; set it under `settings`"),
        ("    rank: $rank", "    dtype: float16", "it is the same for all contestants"),
        ("    rank: $rank", "    training_arguments: {max_steps: 9}", "it is the same for all contestants"),
        ("      penalty: {low: 0.1, high: 1}", "      seed: [0, 1, 2]", "a study sets it for each run"),
        ("      penalty: {low: 0.1, high: 1}", "      max_steps: [5, 9]", "it is the same for all contestants"),
        ("  trials: 5", "  seed: 1.5", "seed=1.5: give a whole number"),
        ("  trials: 5", "  seed: 1099511627776", "seed=1099511627776: give a whole number"),
        ("  trials: 5", "  prune: 'no'", "prune='no': give true or false"),
        (
            "metric: perplexity, task: causal-lm",
            "metric: accuracy, task: causal-lm",
            "of causal-lm there is no 'accuracy'; give one of loss",
        ),
        ("  AdaLoRA:", "  LoRA @ half:", "'LoRA @ half' is also what the contestant of line 11 is called at a budget"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in GOOD
    with pytest.raises(SettingError) as caught:
        built(GOOD.replace(old, new), tmp_path)
    assert said in str(caught.value)
    place = str(caught.value).partition("line ")[2].partition(":")[0]
    here = next(number for number, line in enumerate(GOOD.replace(old, new).splitlines(), 1) if new.strip() in line)
    near = {here}
    if "second time" in said:
        near = {line_of("threads:"), line_of("  AdaLoRA:")}
    if "no valid YAML" in said:
        near = {here, here + 1, here + 2}
    if said == "penalty is a range":
        near = {line_of("search:") + 7, here, here - 3, here - 2}
    assert int(place) in near, str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a study needs `tasks:`"),
        ("- a\n", "line 1: a study is a mapping"),
        ("tasks: {a: {metric: loss}}\n", "a study needs `contestants:`"),
        ("tasks: [a]\ncontestants: {}\n", "line 1: tasks is ['a']"),
        ("tasks: {a: {dataset_name: x, model_name_or_path: y}}\ncontestants: {b: {method: lora}}\n", "it has no `metric:`"),
        (
            "tasks: {a: {dataset_name: x, model_name_or_path: y, metric: loss}}\ncontestants:\n  b: {method: lora}\n",
            "line 3: contestant 'b' has no learning_rate",
        ),
        (
            "tasks: {a: {dataset_name: x, model_name_or_path: y, metric: loss}}\ncontestants:\n  b: {rank: 3}\n",
            "line 3: contestant 'b' needs either",
        ),
        (
            "tasks: {a: {dataset_name: x, metric: loss}}\ncontestants: {b: {method: lora, learning_rate: 1}}\n",
            "model_name_or_path must be given",
        ),
        ("? [1, 2]\n: 3\n", "is no name"),
        (SHORT + "budgets:\n  half: {rank: 2}\n", "line 5: budget 'half': no contestant says $rank"),
        (SHORT.replace("1e-3", "1e-3, rank: $rank") + "budgets:\n  half: 5\n", "line 5: budget 'half' is 5"),
        (
            SHORT.replace("1e-3", "1e-3, search: {learning_rate: [1e-3]}"),
            "line 3: learning_rate is given here, and searched over in line 3",
        ),
        (SHORT.replace("loss", "f1, task: regression"), "line 1: task 'a': of regression there is no 'f1'"),
        (SHORT.replace("loss", "perplexity, task: classification"), "line 1: task 'a': of classification there is no 'perplexity'"),
        (SHORT.replace("loss", "loss, task: [1]"), "line 1: b: --task '[1]': expected one of"),
        (SHORT.replace("loss", "f1, label_names: [x, y, z]"), "line 1: task 'a': f1 is that of one of two classes"),
    ],
)
def test_what_is_missing_is_told(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as caught:
        built(text, tmp_path, {})
    assert said in str(caught.value)


def test_definitions_that_nothing_asks_for_and_names_that_nobody_defines(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"--define dta=...: nothing in .* says \$dta. Did you mean 'data'"):
        built(GOOD, tmp_path, {**NAMES, "dta": "x"})
    with pytest.raises(SettingError, match=r"line 7: nothing says what \$data is"):
        built(GOOD, tmp_path, {"base": "there"})


def test_an_optimizer_belongs_to_a_contestant(tmp_path: Path) -> None:
    own = (
        "1e-3, weight_decay: 0.1, warmup_steps: 0.1, lr_scheduler_type: cosine, max_grad_norm: 0.5, optim: adamw_torch, target_modules: [q]"
    )
    (cell,) = built(SHORT.replace("1e-3", own), tmp_path, {}).study.cells
    assert cell.settings["flags"]["weight_decay"] == 0.1
    # What one contestant says for itself counts before what is said for all.
    settings = "settings: {learning_rate: 1e-2}\n" + SHORT
    (cell,) = built(settings, tmp_path, {}).study.cells
    assert cell.settings["flags"]["learning_rate"] == 1e-3


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "claim.yaml").write_text(GOOD, encoding="utf-8")
    with pytest.raises(SettingError, match=r"cannot be read \(No such file or directory\). Did you mean 'claim.yaml'"):
        read_text(tmp_path / "claims.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match="not in UTF-8"):
        read_text(tmp_path / "bytes.yaml")
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 5000, encoding="utf-8")
    with pytest.raises(SettingError):
        read_text(tmp_path / "deep.yaml")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{index}: &a{index} [{', '.join([f'*a{index - 1}'] * 10)}]" for index in range(1, 9)]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SettingError, match="no valid YAML for a study: more than .* entries"):
        read_text(tmp_path / "laughs.yaml")
    (tmp_path / "tag.yaml").write_text("name: !!python/object/apply:os.system ['true']\n", encoding="utf-8")
    with pytest.raises(SettingError, match="line 1"):
        read_text(tmp_path / "tag.yaml")


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text("a: [3e-4, 1E5, .5e1, 1_0e-1, 7, 0.5, -2e3]\nb: [e5, 3e, 1.2.3e4]\n", encoding="utf-8")
    data = read_text(path).data
    assert data["a"] == [3e-4, 1e5, 5.0, 1.0, 7, 0.5, -2e3]
    assert data["b"] == ["e5", "3e", "1.2.3e4"]
    assert yaml.safe_load("3e-4") == "3e-4"  # which is why
