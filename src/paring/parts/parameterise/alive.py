"""Which ranks of a gate are to be computed with, known without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paring.kernels.adapted import Live


class Alive:
    """The live ranks of one gate.

    On a CPU the gate is looked at each time. Elsewhere a look would wait for the device, so what :func:`recount` last read is taken, as
    long as no one else has written the gate since. Between two recounts gates may die, which then costs a little time and changes nothing.
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
        index = part.nonzero().squeeze(1)
        alive._live = None if len(index) == gate.numel() else Live(index.to(gate.device, non_blocking=True), len(index))
        alive._key = _key(gate)


def _readable(gate: Tensor) -> bool:
    """Whether a look at the gate waits for no device."""
    return gate.is_cpu


def _key(gate: Tensor) -> tuple[int, int, int]:
    return id(gate), gate.data_ptr(), gate._version
