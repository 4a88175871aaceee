"""What the command line says, where, and how an error becomes one sentence.

Results go to stdout, so that they can be piped; everything that is said about the work goes to stderr.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

from paring.core.errors import ParingError

FAILED = 1
USAGE = 2
INTERRUPTED = 130


def first() -> bool:
    """Whether this process is the first of those that train together, told by what has started them."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line about the work, on stderr; of several processes that train together only the first one speaks."""
    if first():
        print(text, file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """One sentence about what went wrong, on stderr."""
    print(f"paring: error: {' '.join(text.split())}", file=sys.stderr, flush=True)


def sentence(error: BaseException) -> str:
    """What went wrong, in one sentence that a user can act on.

    paring's own errors are written as such a sentence. Of foreign errors only those are reworded that say something about
    the user's machine or input; the rest is shown as it is, with the way to the traceback.
    """
    if isinstance(error, ParingError):
        return str(error)
    if full_disk(error):
        return (
            f"There is no space left on the disk{_where(error)}. Free some space or choose another output folder; nothing that "
            "existed before was changed, and a training run goes on from its last checkpoint with --resume_from_checkpoint last."
        )
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return f"No permission to read or write{_where(error)}. Check the owner of the folder, or choose another one."
    torch = sys.modules.get("torch")  # not imported for this: without it nothing can have run out of its memory
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return (
            "The device ran out of memory. Lower --per_device_train_batch_size (and raise --gradient_accumulation_steps as much), "
            "lower --max_length, or turn on --gradient_checkpointing, --bf16 or --load_in_4bit."
        )
    if isinstance(error, ModuleNotFoundError):
        return f"The package {error.name!r} is needed for this and is not installed: pip install {_package(error.name)}."
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text or 'no message'} (unexpected; run again with --debug for the traceback)"


def full_disk(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that the disk is full; writers in Rust or C++ only say so in words."""
    for one in causes(error, hidden=True):
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "no space left on device" in str(one).lower() or f"os error {errno.ENOSPC}" in str(one).lower():
            return True
    return False


def causes(error: BaseException, *, hidden: bool = False) -> Iterator[BaseException]:
    """An error and what caused it, the last first; with ``hidden`` also what a ``raise ... from None`` has left unsaid."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ and not hidden else seen.__context__)


def _where(error: BaseException) -> str:
    return f" at {error.filename!r}" if isinstance(error, OSError) and error.filename else ""


def _package(module: str | None) -> str:
    extras = {"trl": '"paring[trl]"', "bitsandbytes": '"paring[quant]"'}
    top = (module or "").partition(".")[0]
    return extras.get(top, top)


_modes: dict[str, bool] = {"debug": False}


def calm(debug: bool) -> None:
    """Keep other packages' chatter off the screen: what matters reaches the user as a line of ours.

    Warnings stay, each once and on one line; those about a library's own future do not concern a user of the command line.
    """
    _modes["debug"] = debug
    if debug:
        return
    warnings.simplefilter("once")
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
    ) -> None:
        say(f"paring: warning: {' '.join(str(message).split())}")

    warnings.showwarning = show
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_no_kernel_hint)


def _no_kernel_hint(record: logging.LogRecord) -> bool:
    """Drop what bitsandbytes says on every import, 4 bit or not, where an optional package that makes it quicker is missing."""
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")


def calm_libraries() -> None:
    """Lower the volume of transformers and datasets, unless ``--debug`` was given; for commands that load them."""
    if _modes["debug"]:
        return
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()


def guarded(work: Callable[[], int], debug: bool) -> int:
    """Run a command; an error becomes one sentence and a status, a traceback only where ``debug`` asks for it."""
    try:
        return work()
    except KeyboardInterrupt:
        if debug:
            raise
        say("paring: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has left (`paring predict ... | head`); close stdout quietly.
        sys.stderr.close()
        return FAILED
    except Exception as error:
        if debug:
            raise
        complain(sentence(error))
        return FAILED
