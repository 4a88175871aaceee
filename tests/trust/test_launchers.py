"""The script of docs/distributed.md under its commands: what several processes train and export is what one does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import paring
from paring.core.adapter import Adapter
from paring.core.records import RunRecord
from paring.exchange.layout import WEIGHTS
from tests.trust.grids import cell

ROOT = Path(__file__).parent.parent.parent
SCRIPT, FSDP2 = ROOT / "examples" / "distributed.py", ROOT / "examples" / "fsdp2.yaml"
AS_IF = Path(__file__).with_name("as_if_gpus.py")
MAKE = """
import sys, json
sys.path.insert(0, sys.argv[1])
import small, torch
from pathlib import Path
torch.manual_seed(0)
small.encoder(Path.cwd(), tiny=True)
Path("rows.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in small.rows(256)), encoding="utf-8")
"""
FLAGS = ("--quick", "--tiny")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo"),
]
Record = Callable[[str, object], None]


def run(words: Sequence[str | Path], place: Path) -> subprocess.CompletedProcess[str]:
    """A command as a user would give it, in the environment of these tests."""
    # What it tells of the network, it must do without.
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return subprocess.run(
        [*map(str, words)], cwd=place, env={**variables, "PATH": path}, capture_output=True, text=True, timeout=450, check=False
    )


def free_port() -> int:
    """A port that nobody listens on, so that tests do not meet each other's processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(size: int) -> tuple[str, ...]:
    """The command of the docs, with a port of its own."""
    return "torchrun", "--nproc_per_node", str(size), "--master_port", str(free_port())


def accelerate(*words: str | Path) -> tuple[str | Path, ...]:
    """The command of the docs, with a port of its own."""
    return "accelerate", "launch", "--main_process_port", str(free_port()), *words


def trained(words: Sequence[str | Path], place: Path, *flags: str, size: int = 2) -> Path:
    """The folder of the script's run under a command, by so many processes together."""
    done = run([*words, SCRIPT, *FLAGS, *flags, "--output_dir", place / "out"], place)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"trained by {size}\n" in done.stdout
    assert "live ranks" in done.stdout
    return place / "out"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains, on all rows of each step."""
    return trained([sys.executable], tmp_path_factory.mktemp("one"), size=1)


def assert_same(got: Path, wanted: Path) -> None:
    """The same files, settings and adapter."""
    there, here = paring.read(got / "adapter"), paring.read(wanted / "adapter")
    assert {path.name for path in (got / "adapter").iterdir()} == {path.name for path in (wanted / "adapter").iterdir()}
    assert settings(got) == settings(wanted)
    assert (got / "adapter" / WEIGHTS).stat().st_size == (wanted / "adapter" / WEIGHTS).stat().st_size
    assert_close(there, here)


def assert_close(got: Adapter, wanted: Adapter) -> None:
    """The same ranks, and updates that differ by what Adam makes of another order of sums."""
    assert got.ranks == wanted.ranks
    for path, factors in wanted.modules.items():
        update = factors.materialise()
        assert (got.modules[path].materialise() - update).norm() <= 1e-3 * update.norm(), path


def settings(run: Path) -> dict[str, object]:
    """The exported configuration, but for where the base model lay."""
    found: dict[str, object] = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key != "base_model_name_or_path"}


def back_to(run: Path, step: int, place: Path) -> None:
    """Put a run as it was after a checkpoint into another place."""
    shutil.copytree(run / "run" / f"checkpoint-{step}", place / "out" / "run" / f"checkpoint-{step}")


@pytest.mark.parametrize("size", [pytest.param(size, marks=cell("distributed", f"DDP, {size} processes", "torchrun")) for size in (2, 4)])
def test_torchrun(size: int, reference: Path, tmp_path: Path, record_property: Record) -> None:
    record_property("trust", f"{size} x {32 // size} rows against 32, BERT")
    assert_same(trained(torchrun(size), tmp_path, size=size), reference)


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=cell("distributed", f"DDP, {size} processes", "accelerate launch")) for size in (2, 4)]
)
def test_accelerate_launch(size: int, reference: Path, tmp_path: Path) -> None:
    assert_same(trained(accelerate("--multi_gpu", "--num_machines", "1", "--num_processes", str(size)), tmp_path, size=size), reference)


@cell("distributed", "DDP, 2 processes", "checkpoint loads in another layout")
def test_trainers_checkpoint_of_one_process_goes_on_in_two(reference: Path, tmp_path: Path) -> None:
    back_to(reference, 3, tmp_path)
    assert_same(trained(torchrun(2), tmp_path, "--resume"), reference)


@cell("distributed", "DDP, 2 processes", "checkpoint loads in another layout")
def test_trainers_checkpoint_of_two_processes_goes_on_in_one(reference: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    two = trained(torchrun(2), tmp_path / "two")
    back_to(two, 3, tmp_path)
    assert_same(trained([sys.executable], tmp_path, "--resume", size=1), reference)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="accelerate shards on two GPUs or more; on processors it runs DDP instead")
@cell("distributed", "FSDP2, 2 processes", "accelerate launch")
def test_accelerate_launch_with_shards(reference: Path, tmp_path: Path) -> None:
    assert_same(trained(accelerate("--config_file", FSDP2), tmp_path), reference)


@cell("distributed", "FSDP2, 2 processes", "accelerate launch")
def test_accelerate_launch_with_shards_as_if_on_gpus(reference: Path, tmp_path: Path, record_property: Record) -> None:
    record_property("trust", "right on processors where accelerate is told that they are GPUs")
    assert_same(trained([*accelerate("--config_file", FSDP2), AS_IF], tmp_path), reference)
    for name in ("run/checkpoint-6", "adapter"):
        shutil.rmtree(tmp_path / "out" / name)
    assert_same(trained([*accelerate("--config_file", FSDP2), AS_IF], tmp_path, "--resume"), reference)


@pytest.mark.parametrize("size", [pytest.param(size, marks=cell("distributed", f"FSDP2, {size} processes", "torchrun")) for size in (2, 4)])
def test_torchrun_with_shards_in_a_loop_of_ones_own(size: int, tmp_path: Path, record_property: Record) -> None:
    record_property("trust", "a loop with fully_shard")
    done = run([*torchrun(size), ROOT / "tests" / "attach" / "sharded_worker.py", tmp_path], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


@cell("distributed", "FSDP1", "torchrun", refused=True)
def test_torchrun_with_flattened_parameters_is_refused(tmp_path: Path) -> None:
    done = run([*torchrun(2), Path(__file__).with_name("fsdp1_worker.py"), tmp_path], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


@cell("distributed", "FSDP1", "accelerate launch", refused=True)
def test_accelerates_default_for_shards_is_refused(tmp_path: Path) -> None:
    # Both send weights from the first process to the devices of the others.
    on_processors = ("--fsdp_sync_module_states", "false", "--fsdp_cpu_ram_efficient_loading", "false")
    done = run([*accelerate("--use_fsdp", *on_processors, "--num_machines", "1", "--num_processes", "2"), AS_IF, SCRIPT, *FLAGS], tmp_path)
    assert done.returncode != 0
    assert "StepError: FSDP1 flattens the gates" in done.stderr, done.stderr[-3000:]
    assert "Set fsdp_version to 2, or use DDP." in done.stderr


@pytest.mark.parametrize(
    "stage",
    [pytest.param(stage, marks=cell("distributed", f"DeepSpeed ZeRO-{stage}", "accelerate launch", refused=True)) for stage in (1, 2, 3)],
)
def test_accelerate_launch_with_deepspeed_is_refused(stage: int, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    deepspeed = accelerate("--use_deepspeed", "--zero_stage", str(stage), "--num_machines", "1", "--num_processes", "2")
    done = run([*deepspeed, SCRIPT, *FLAGS], tmp_path)
    assert done.returncode != 0
    assert "StepError: DeepSpeed keeps the trained parameters" in done.stderr, done.stderr[-3000:]


def command_line(words: Sequence[str | Path], data: Path, place: Path, rows: int, **flags: object) -> RunRecord:
    """What ``paring train`` records under a command."""
    spelled = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    paths = ["--model_name_or_path", data / "encoder", "--dataset_name", data / "rows.jsonl", "--output_dir", place / "out"]
    settings = ["--rank", "4", "--learning_rate", "0.01", "--max_steps", "6", "--eval_share", "0.25", "--seed", "0", "--use_cpu", "true"]
    batch = ["--per_device_train_batch_size", str(rows)]
    done = run([*words, "-m", "paring.cli", "train", *paths, *settings, *batch, *spelled], place)
    assert done.returncode == 0, done.stderr[-3000:]
    return RunRecord.from_json((place / "out" / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder without dropout, and labelled sentences."""
    place = tmp_path_factory.mktemp("data")
    made = run([sys.executable, "-c", MAKE, ROOT / "examples"], place)
    assert made.returncode == 0, made.stderr[-3000:]
    encoder = place / "encoder"
    config = json.loads((encoder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (encoder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return place


@cell("distributed", "DDP, 2 processes", "torchrun")
@pytest.mark.parametrize("flags", [{"penalty": 0.5}, {"method": "spectral", "budget": "40%"}], ids=["sora", "spectral"])
def test_the_command_line_under_torchrun(flags: dict[str, object], data: Path, tmp_path: Path, record_property: Record) -> None:
    record_property("trust", "paring train: 2 x 8 rows against 16")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = command_line([sys.executable], data, tmp_path / "one", 16, **flags)
    two = command_line(torchrun(2), data, tmp_path / "two", 8, **flags)
    assert [(module.path, module.live_rank) for module in two.modules] == [(module.path, module.live_rank) for module in one.modules]
    assert 0 < two.live_ranks < two.start_ranks
    assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=0.01)
    norms = [[point.values["grad_norm"] for point in each.history if "grad_norm" in point.values] for each in (two, one)]
    assert norms[0] == pytest.approx(norms[1], rel=0.02)
    wanted = paring.read(tmp_path / "one" / "out" / "adapter")
    assert_close(paring.read(tmp_path / "two" / "out" / "adapter"), wanted)


@cell("distributed", "DDP, 2 processes", "torchrun")
def test_lisa_under_torchrun_is_refused(data: Path, tmp_path: Path) -> None:
    words = ["-m", "paring.cli", "train", "--method", "lisa", "--use_cpu", "true", "--max_steps", "2"]
    paths = ["--model_name_or_path", data / "encoder", "--dataset_name", data / "rows.jsonl", "--output_dir", tmp_path / "out"]
    done = run([*torchrun(2), *words, *paths], tmp_path)
    assert done.returncode != 0
    assert "There are 2 processes" in done.stderr, done.stderr[-3000:]
    assert not (tmp_path / "out").exists()
