r"""One module's low-rank update, as a frozen value: :math:`\Delta W = s\, B\, \mathrm{diag}(g)\, A`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from paring.core.errors import AdapterError


def whole(tensor: Tensor) -> Tensor:
    """The tensor without its graph, and in one piece if it is sharded (FSDP2): every process must ask at once then."""
    if isinstance(tensor, DTensor) and tensor.dtype is torch.int16:
        # Whole numbers of two bytes are the ones that processes cannot send each other, by gloo or by NCCL.
        return whole(tensor.to(torch.int32)).to(torch.int16)
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, or this process's shard of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    r"""The factors of one module's update, :math:`\Delta W = s\, B\, \mathrm{diag}(g)\, A`.

    Attributes:
        a: ``A``, the down-projection, shape ``(r, in)``.
        b: ``B``, the up-projection, shape ``(out, r)``.
        gate: ``g``, shape ``(r,)``; ``None`` means all ones. ``g_i == 0`` exactly means that rank ``i`` is gone.
        scale: ``s``, a plain number; in LoRA ``alpha / r``.

    Raises:
        AdapterError: shapes do not fit together.
    """

    a: Tensor
    b: Tensor
    gate: Tensor | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.ndim != 2:
            raise AdapterError(f"Factors need matrices, got A {tuple(self.a.shape)} and B {tuple(self.b.shape)}.")
        if self.a.shape[0] != self.b.shape[1]:
            raise AdapterError(
                f"A {tuple(self.a.shape)} and B {tuple(self.b.shape)} disagree on the rank: "
                f"A's rows ({self.a.shape[0]}) must equal B's columns ({self.b.shape[1]})."
            )
        if self.gate is not None and self.gate.shape != (self.rank,):
            raise AdapterError(f"The gate has shape {tuple(self.gate.shape)}, but rank {self.rank} needs ({self.rank},).")

    @property
    def rank(self) -> int:
        """Number of ranks held, dead ones included."""
        return self.a.shape[0]

    @property
    def in_features(self) -> int:
        """Width of the module's input."""
        return self.a.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the module's output."""
        return self.b.shape[0]

    @property
    def live_rank(self) -> int:
        """Number of ranks whose gate is not exactly zero."""
        return self.rank if self.gate is None else int(torch.count_nonzero(self.gate).item())

    @property
    def parameters(self) -> int:
        """Number of entries once pruned and folded: ``live_rank * (in + out)``."""
        return self.live_rank * (self.in_features + self.out_features)

    def prune(self) -> Factors:
        """Drop every rank whose gate is exactly zero; the update is unchanged."""
        if self.gate is None:
            return self
        keep = torch.nonzero(self.gate).flatten()
        if keep.shape[0] == self.rank:
            return self
        return replace(self, a=self.a[keep], b=self.b[:, keep], gate=self.gate[keep])

    def fold(self, dtype: torch.dtype = torch.float32) -> Factors:
        """Fold gate and scale into ``B``, computed in ``dtype``: the same update with ``gate=None`` and ``scale=1``."""
        a, b = self.a.to(dtype), self.b.to(dtype)
        if self.gate is not None:
            b = b * self.gate.to(dtype)
        return Factors(a=a, b=b if self.scale == 1.0 else b * self.scale)

    def pad(self, rank: int) -> Factors:
        """Append zero rows and columns up to ``rank``; the update is unchanged.

        Raises:
            AdapterError: ``rank`` is below the rank held.
        """
        extra = rank - self.rank
        if extra < 0:
            raise AdapterError(f"Cannot pad rank {self.rank} down to {rank}; prune or compress instead.")
        if extra == 0:
            return self
        a = torch.cat([self.a, self.a.new_zeros(extra, self.in_features)])
        b = torch.cat([self.b, self.b.new_zeros(self.out_features, extra)], dim=1)
        gate = None if self.gate is None else torch.cat([self.gate, self.gate.new_zeros(extra)])
        return replace(self, a=a, b=b, gate=gate)

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Factors:
        """Move or cast all tensors."""
        gate = None if self.gate is None else self.gate.to(device=device, dtype=dtype)
        return replace(self, a=self.a.to(device=device, dtype=dtype), b=self.b.to(device=device, dtype=dtype), gate=gate)

    def materialise(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in"]:
        """The dense update ``s B diag(g) A``, shape ``(out, in)``."""
        folded = self.fold(dtype)
        return folded.b @ folded.a

    def apply(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The update applied to inputs, ``s B diag(g) A x``, without forming the dense matrix."""
        inner = (x @ self.a.to(x.dtype).T) * self.scale
        if self.gate is not None:
            inner = inner * self.gate.to(x.dtype)
        result: Tensor = inner @ self.b.to(x.dtype).T
        return result

    @staticmethod
    def concatenate(parts: Sequence[Factors], dtype: torch.dtype = torch.float32) -> Factors:
        """Stack factors along the rank, so that the updates add up: ``sum_j s_j B_j diag(g_j) A_j``, computed in ``dtype``.

        Raises:
            AdapterError: nothing to concatenate, or shapes of different modules.
        """
        if not parts:
            raise AdapterError("Nothing to concatenate: give at least one set of factors.")
        shapes = {(part.in_features, part.out_features) for part in parts}
        if len(shapes) > 1:
            raise AdapterError(f"Factors of differently shaped modules do not add up: {sorted(shapes)}.")
        folded = [part.fold(dtype) for part in parts]
        return Factors(a=torch.cat([part.a for part in folded]), b=torch.cat([part.b for part in folded], dim=1))
