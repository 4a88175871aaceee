"""Holding gates that are exactly zero over an optimizer's step that has no gradient of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hold:
    """Gates before an optimizer's step, end to end: which of them are zero, and what the optimizer remembers of all.

    Without it an optimizer with a momentum would carry a dead gate on, and its averages would fill with zeros that nobody measured.

    Attributes:
        gates: the gates, vectors of one device and type, local where they are sharded.
        dead: which of their entries are exactly zero.
        kept: the optimizer's state by key, for the tensors of the gates' own shapes.
    """

    gates: tuple[Tensor, ...]
    dead: Tensor
    kept: Mapping[str, Tensor]

    @classmethod
    def take(cls, gates: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[Mapping[str, object]]) -> Hold:
        """Look at the gates and at the optimizer's state of each, before the step, and take away what gradient dead gates have.

        They have one where all ranks were computed; that must make no difference. Without ``states`` nothing is remembered, which is
        enough for gates that never come back.
        """
        dead = _flat(gates) == 0
        _write(gradients, _flat(gradients).masked_fill_(dead, 0.0))
        return cls(
            gates=tuple(gates),
            dead=dead,
            kept={key: _flat(parts) for key, parts in _like(gates, states).items()},
        )

    def restore(self, states: Sequence[Mapping[str, object]]) -> None:
        """After the step: dead gates are zero again, and what is remembered of them is as it was."""
        _write(self.gates, _flat(self.gates).masked_fill_(self.dead, 0.0))
        for key, parts in _like(self.gates, states).items():
            if key in self.kept:
                _write(parts, torch.where(self.dead, self.kept[key], _flat(parts)))


def _like(gates: Sequence[Tensor], states: Sequence[Mapping[str, object]]) -> dict[str, list[Tensor]]:
    """The state tensors that have an entry for each entry of each gate, by key; a key that a gate lacks is left out."""
    found: dict[str, list[Tensor]] = {}
    for key in states[0] if states else ():
        parts = []
        for gate, state in zip(gates, states, strict=True):
            part = state.get(key)
            if isinstance(part, Tensor) and part.shape == gate.shape and part.dtype.is_floating_point:
                parts.append(part)
        if len(parts) == len(gates):
            found[key] = parts
    return found


def _flat(vectors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(vectors))


def _write(into: Sequence[Tensor], flat: Tensor) -> None:
    pieces = torch.split(flat, [tensor.numel() for tensor in into])
    torch._foreach_copy_(list(into), list(pieces))
