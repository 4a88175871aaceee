"""Doing something once the gradients of a step are there, which some optimizers make inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def once_gradients_are_there(
    prepare: Callable[[], None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Call ``prepare`` before an optimizer's step, or inside it where a closure makes the gradients there.

    Args:
        prepare: what is to be done.
        args: of ``step``, the optimizer itself first, as ``torch.optim`` hands them to a hook that comes before.
        kwargs: likewise.

    Returns:
        What that hook is to return: the arguments with another closure, or ``None`` to leave them.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not callable(closure):
        prepare()
        return None

    def prepared() -> Any:
        loss = closure()
        prepare()
        return loss

    if "closure" in kwargs:
        return args, {**kwargs, "closure": prepared}
    return (args[0], prepared, *args[2:]), kwargs
