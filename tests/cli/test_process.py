"""The command line as a process of its own: what it loads, and what Ctrl-C leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import paring

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def test_help_loads_no_heavy_package() -> None:
    script = (
        "import sys\nfrom paring.cli.main import main\nstatus = main(['--help'])\n"
        "print('LOADED', [name for name in ('torch', 'peft', 'transformers', 'datasets') if name in sys.modules])\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert "LOADED []" in done.stdout
    assert all(name in done.stdout for name in ("train", "export", "inspect", "verify", "predict", "eval", "fuse", "methods", "demo"))


def test_version_and_errors_as_a_process() -> None:
    done = subprocess.run([sys.executable, "-m", "paring.cli", "--version"], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout == f"paring {paring.__version__}\n"
    bare = subprocess.run([sys.executable, "-m", "paring.cli"], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert bare.returncode == 2
    assert bare.stdout == ""
    assert bare.stderr.startswith("usage: paring")
    failed = subprocess.run([sys.executable, "-m", "paring.cli", "inspekt"], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("paring: error: Unknown command 'inspekt'. Did you mean 'inspect'?")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
def test_an_interrupt_leaves_a_checkpoint_and_says_how_to_go_on(bert: Path, moods: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "paring.cli", "train", "--model_name_or_path", str(bert), "--dataset_name", str(moods)]
    command += ["--rank", "4", "--max_steps", "400", "--logging_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"]
    command += ["--per_device_train_batch_size", "4", "--seed", "3"]
    process = subprocess.Popen(
        [*command, "--output_dir", str(tmp_path / "out")], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("step 5/"):
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    text = "".join(said)
    assert "Traceback" not in text
    checkpoints = list((tmp_path / "out").glob("checkpoint-*"))
    assert len(checkpoints) == 1
    assert 5 <= int(checkpoints[0].name.rpartition("-")[2]) < 400
    assert f"--resume_from_checkpoint {checkpoints[0]}" in text
    # The line that it says can be typed as it stands.
    again = next(line.strip() for line in said if "--resume_from_checkpoint checkpoint" in line or "--resume_from_checkpoint /" in line)
    assert again.startswith("paring train ")
