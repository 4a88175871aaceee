"""What a reader of a study must not miss, for its page and for the terminal alike."""

from __future__ import annotations

from collections.abc import Sequence

from paring.study.tables import listing


def held_out(tasks: Sequence[str]) -> str:
    """That tasks had no rows of their own to be scored on."""
    return (
        f"For want of a dev split, rows to score on are held out of the training rows of {listing(tasks)}, drawn once by the search's "
        "seed: every final run is scored on the same ones, and no run is trained on them."
    )
