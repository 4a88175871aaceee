"""Nothing goes out: importing paring and running on local files look up no host and connect to none, also where a hub could be asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# What would be a connection is told on the standard error, and refused. Sockets of the machine itself have a path for an address.
WATCH = """
import socket, sys
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname") or event == "socket.connect" and not isinstance(arguments[1], (str, bytes)):
        print("WENT OUT", event, arguments, file=sys.stderr)
        raise OSError("no network")
sys.addaudithook(watch)
"""
ENVIRONMENT = {**{name: value for name, value in os.environ.items() if not name.startswith("HF_")}, "OMP_NUM_THREADS": "1"}


def _run(script: str, home: Path) -> subprocess.CompletedProcess[str]:
    variables = {**ENVIRONMENT, "HF_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", WATCH + script], capture_output=True, text=True, env=variables, check=False, timeout=300)


def test_the_watch_sees_a_connection(tmp_path: Path) -> None:
    done = _run("import urllib.request\nurllib.request.urlopen('http://localhost:9')", tmp_path)
    assert "WENT OUT" in done.stderr


# Two modules are programs.
IMPORTS = """
import importlib, pkgutil, paring
for one in pkgutil.walk_packages(paring.__path__, "paring."):
    if one.name not in ("paring.cli.__main__", "paring.cli.outside"):
        importlib.import_module(one.name)
"""


def test_importing_everything_and_a_run_on_local_files_ask_for_nothing(bert: Path, moods: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train = ["train", "--model_name_or_path", str(bert), "--dataset_name", str(moods), "--rank", "4", "--max_steps", "3"]
    train += ["--output_dir", str(out), "--per_device_train_batch_size", "4", "--use_cpu"]
    commands = [train, ["inspect", str(out / "adapter")], ["verify", str(out / "adapter")]]
    script = f"from paring.cli.main import main\nfor command in {commands!r}:\n    assert main(command) == 0, command\n"
    done = _run(IMPORTS + script, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "WENT OUT" not in done.stderr, done.stderr[-2000:]
