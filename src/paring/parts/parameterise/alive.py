"""Which ranks of a gate are to be computed with, known without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paring.kernels.adapted import Live

SPARE = 128
"""Dead ranks from which on an accelerator leaves them out. A product with a narrower factor waits there for the wide tensor that it
reads, whatever its width: 8 and 64 ranks take the same time on an H200, and picking ranks costs a dozen launches more."""

MULTIPLE = 8
"""Of ranks that an accelerator computes with: its matrix units read 16 bytes at a time."""


class Alive:
    """The live ranks of one gate.

    On a CPU the gate is looked at each time. Elsewhere a look would wait for the device, so what :func:`recount` last read is taken, as
    long as no one else has written the gate since. Between two recounts gates may die, which then costs a little time and changes nothing.
    There dead ranks are left out if the whole module is empty, or if there are many of them (:data:`SPARE`); what dead ranks are
    computed with have a gate of zero, and the hook on the optimizer's step takes away its gradient.
    """

    def __init__(self) -> None:
        self._live: Live | None = None
        self._key: tuple[int, int, int] | None = None
        self._last: tuple[list[bool], bool, Live] | None = None

    def look(self, gate: Tensor, checking: bool) -> Live | None:
        """The ranks to compute with; ``None`` means all.

        Args:
            gate: the gate; a stand-in (of ``torch.func``, or sharded) is not looked into.
            checking: whether dead gates are to have their gradient, so that they may come back.
        """
        if type(gate) is not nn.Parameter:
            return None
        if not _readable(gate):
            return self._live if self.known(gate) and not checking else None
        # Plain numbers: operations of torch would take ten times as long on so few, and a view in numpy pins the memory that FSDP2 frees.
        values = gate.tolist()
        if all(values):
            return None
        pattern = [value != 0.0 for value in values]
        if self._last is None or self._last[:2] != (pattern, checking):
            alive = [rank for rank, lives in enumerate(pattern) if lives]
            dead = [rank for rank, lives in enumerate(pattern) if not lives] if checking else []
            self._last = pattern, checking, Live(torch.tensor(alive + dead, dtype=torch.int64), len(alive))
        return self._last[2]

    def known(self, gate: Tensor) -> bool:
        """Whether a recount is there and no one has written the gate since."""
        return self._key == _key(gate)

    def confirm(self, gate: Tensor) -> None:
        """Before an optimizer's step: forget a recount that somebody's write has made void."""
        if not self.known(gate):
            self._key = None

    def follow(self, gate: Tensor) -> None:
        """After a step in which no gate could come back: the recount holds for the gate as it is now."""
        if self._key is not None:
            self._key = _key(gate)


@torch.no_grad()
def recount(found: Sequence[tuple[Alive, Tensor]]) -> None:
    """Look at many gates of one device in one go, the only place that waits for it; on a CPU there is no need."""
    found = [(alive, gate) for alive, gate in found if not _readable(gate)]
    if not found:
        return
    flags = (torch.cat([gate.reshape(-1) for _, gate in found]) != 0).cpu()
    for (alive, gate), part in zip(found, torch.split(flags, [gate.numel() for _, gate in found]), strict=True):
        index = _worth(part)
        alive._live = None if index is None else Live(index.to(gate.device, non_blocking=True), len(index))
        alive._key = _key(gate)


def _worth(lives: Tensor) -> Tensor | None:
    """The ranks that an accelerator is to compute with, live ones and as many dead ones as fill them up; ``None`` means all."""
    alive, dead = lives.nonzero().squeeze(1), (~lives).nonzero().squeeze(1)
    if not len(alive):
        return alive
    fill = -len(alive) % MULTIPLE
    return None if len(dead) - fill < SPARE else torch.cat([alive, dead[:fill]])


def _readable(gate: Tensor) -> bool:
    """Whether a look at the gate waits for no device."""
    return gate.is_cpu


def _key(gate: Tensor) -> tuple[int, int, int]:
    return id(gate), gate.data_ptr(), gate._version
