"""The server of :mod:`tests.warm`: imports what is not paring's, and forks the programs that it is asked for."""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any


def serve() -> None:
    """Import, then start programs and wait for them, as the lines of the standard input say; in a program's process, be that."""
    # What a library prints as it is imported is no answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import datasets
    import numpy as np
    import peft
    import torch
    import transformers

    _ = torch._dynamo, datasets.Dataset, peft.PeftModel, transformers.AutoModel, transformers.Trainer, transformers.AutoTokenizer
    del sys.path[0]  # the folder of this script
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            print(_ended(request["pid"], request["timeout"]), file=answers)
        elif pid := os.fork():
            print(pid, file=answers)
        else:
            random.seed()
            np.random.seed()  # noqa: NPY002 - the state that a fork would share with all others
            _become(request)
            return


def _ended(pid: int, timeout: float) -> int:
    """What a program exits with; less the signal if it was killed by one."""
    until = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            until = float("inf")
        time.sleep(0.005)


def _become(request: Mapping[str, Any]) -> None:
    """Run the program that was asked for, whose errors are this process's."""
    for number, path in enumerate((os.devnull, request["out"], request["err"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[:0] = [request["path"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = request["arguments"]
    runpy.run_path(request["script"], run_name="__main__")


if __name__ == "__main__":
    serve()
