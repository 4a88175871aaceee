"""What a reader of a study must not miss, for its page and for the terminal alike."""

from __future__ import annotations

from collections.abc import Sequence

from paring.study.records import Findings
from paring.study.tables import listing


def held_out(tasks: Sequence[str]) -> str:
    """That tasks had no rows of their own to be scored on."""
    return (
        f"For want of a dev split, rows to score on are held out of the training rows of {listing(tasks)}, drawn once by the search's "
        "seed: every final run is scored on the same ones, and no run is trained on them."
    )


def mixed(findings: Findings) -> tuple[str, ...]:
    """That runs were not all made by the same code, on the same machine, with the same threads; nothing if they were."""
    said = []
    several = [name for name, found in findings.versions.items() if len(found) > 1]
    if several:
        said.append(f"Runs were made with several versions of {', '.join(several)}.")
    if len(findings.machines) > 1:
        said.append(f"Runs were made on {len(findings.machines)} kinds of machine or with different threads, so times don't compare.")
    threads = sorted({str(machine["threads"]) for machine in findings.machines if "threads" in machine}, key=lambda one: (len(one), one))
    if len(threads) > 1:
        said.append(f"Runs were made with {listing(threads)} threads, so scores may differ in their last bits.")
    return tuple(said)
