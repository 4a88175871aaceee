r"""LoRA in the order of its singular values: :math:`\Delta W = s\,B A`, whose ranks from the k-th on are exactly zero and cost nothing."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from paring.core.factors import Factors, whole
from paring.core.linalg import Split, finite, product_svd, weighted_split
from paring.kernels.adapted import adapted_linear, idle
from paring.kernels.low_rank import add_low_rank
from paring.parts.parameterise.followed import Followed
from paring.parts.update.cut import Cut


def precise(factor: Tensor) -> Tensor:
    """In float64, on the CPU where it is Apple's device, which has none."""
    return (factor.cpu() if factor.device.type == "mps" else factor).double()


@torch.no_grad()
def _add_gram(gram: Tensor, rows: Tensor) -> None:
    """Add the rows' Gram matrix to the upper left of a sum of such."""
    rows = rows.reshape(-1, rows.shape[-1]).to(gram.dtype)
    with torch.autocast(rows.device.type, enabled=False):
        gram[: rows.shape[1], : rows.shape[1]].addmm_(rows.T, rows)


class Turn(NamedTuple):
    r"""A change of basis, :math:`A' = P A` and :math:`B' = B Q`.

    Since :math:`dL/dA = s B^\top G`, gradients turn the other way: :math:`dL/dA' = Q^\top dL/dA` and :math:`dL/dB' = dL/dB\,P^\top`.

    Attributes:
        p: (kept, before).
        q: (before, kept).
    """

    p: Tensor
    q: Tensor


class Ordered(Followed):
    r"""Factors that :meth:`cut` turns into the order of their singular values, and sets to zero from some rank on.

    Shapes stay. With :math:`B A = U\,\mathrm{diag}(\sigma)\,V^\top` and k ranks kept,

    .. math:: A \leftarrow c\,V_k^\top, \qquad B \leftarrow U_k\,\mathrm{diag}(\sigma_k) / c, \qquad \text{and zeros beyond,}

    where c is the norm that the rows of A started with, so that the optimizer's steps mean to B what they did before. Where both factors
    are zero so are their gradients: what was cut stays away. Ranks beyond the last that is not zero are left out of all products; which one
    that is is looked at once after each cut, each load and each change of mode, since a look waits for the device.

    Args:
        start: the factors to begin with.
        update: when to cut, and down to what.
        dropout: as in :class:`~paring.parts.parameterise.low_rank.LowRank`.
    """

    inputs: Tensor
    outputs: Tensor
    rows: Tensor
    sought: Tensor

    def __init__(self, start: Factors, update: Cut, dropout: float = 0.0) -> None:
        super().__init__(start, dropout)
        self.update = update
        self.norm = float(start.a.norm(dim=1).mean()) or 1.0
        if not update.budget.known:
            # Whether the size has been found; saved too, since a size that is all cannot be told from none.
            self.register_buffer("sought", torch.zeros((), dtype=torch.bool))
        if update.score == "loss":
            # What looks at batches before a cut have found: sums over rows of (A x)(A x)^T and of z z^T with z = s B^T dL/dy, and the rows.
            for name in ("inputs", "outputs"):
                self.register_buffer(name, torch.zeros(start.rank, start.rank))
            self.register_buffer("rows", torch.zeros((), dtype=torch.int64))
        # The same of this process since the last step. DDP gives all processes the first one's buffers before each forward.
        self._fresh: tuple[Tensor, Tensor, Tensor] | None = None
        self._left: int | None = None
        self._settled: bool | None = None

    @property
    def left(self) -> int:
        """Ranks up to the last that is not exactly zero."""
        if self._left is None:
            lives = (whole(self.A).detach() != 0).any(dim=1).nonzero()
            self._left = int(lives[-1]) + 1 if len(lives) else 0
        return self._left

    @property
    def pace(self) -> float:
        r"""How many times as far as the optimizer a step moves the factors: :math:`(r / k)^q` with k of r ranks left."""
        return (self.A.shape[0] / self.left) ** self.update.quicken if self.left else 1.0

    @property
    def settled(self) -> bool:
        """Whether the last cut has been made, as far as this slot knows: that of a size that is not known before it."""
        if self._settled is None:
            self._settled = self.update.budget.known or bool(self.sought)
        return self._settled

    def settle(self) -> None:
        """Note that the size has been found."""
        self._settled = True
        self.sought.fill_(True)

    @property
    def looking(self) -> bool:
        """Whether what goes through now is to be looked at; never where a compiler traces, which would be bound to this very step."""
        if self.update.score != "loss" or torch.compiler.is_compiling() or self.leader is None:
            return False
        return self.training and torch.is_grad_enabled() and self.leader.looks(self.taken)

    @torch.no_grad()
    def looked(self) -> None:
        """After the step: add what was seen since the last to what is saved, that of all processes of a group together.

        Where loss scaling has overflowed, what was seen is as worthless as the gradient.
        """
        total = self.inputs, self.outputs, self.rows
        fresh = self._fresh if self._fresh is not None else tuple(map(torch.zeros_like, total))
        self._fresh = None
        if dist.is_available() and dist.is_initialized():
            for seen in fresh:
                dist.all_reduce(seen)
        if finite(fresh[0]) and finite(fresh[1]):
            for saved, seen in zip(total, fresh, strict=True):
                saved.add_(seen)

    @torch.no_grad()
    def split(self, *, by_loss: bool) -> Split:
        r"""The update as terms of falling weight.

        Args:
            by_loss: by what the loss would lose without them, to second order with its curvature taken as
                :math:`\mathrm{E}[g g^\top] \otimes \mathrm{E}[x x^\top]` over the rows looked at since the last cut; else by size, the
                singular values of :math:`s\,B A`.
        """
        left = self.left
        if by_loss:
            outer, inner = self.outputs[:left, :left], self.inputs[:left, :left] / self.rows.clamp_min(1)
            return weighted_split(*(gram.cpu() if gram.device.type == "mps" else gram for gram in (outer, inner)))
        a, b = precise(self.A[:left]), precise(self.B[:, :left])
        return weighted_split(b.T @ b * self.scale**2, a @ a.T)

    @torch.no_grad()
    def cut(self, split: Split, keep: int) -> Turn:
        """Keep the leading terms of what :meth:`split` has given, in the order of their singular values, and set the others to zero.

        Returns:
            How the factors were turned, for what an optimizer remembers of them.
        """
        left = self.left
        p, q = split.p[:keep], split.q[:, :keep]
        a, b = p @ precise(self.A[:left]), precise(self.B[:, :left]) @ q
        svd = product_svd(b, a)
        s = svd.s[:keep]
        norm = self.norm
        # A rank of no size has no direction that a gradient could be turned into.
        longer = torch.where(s > s.sum() * torch.finfo(torch.float32).eps, norm / s, 0.0)
        turn = Turn(p=longer[:, None] * (svd.u[:, :keep].T @ b) @ p, q=q @ (a @ svd.vt[:keep].T) / norm)
        self.A.zero_()
        self.B.zero_()
        self.A[:keep] = (svd.vt[:keep] * norm).to(self.A.dtype)
        self.B[:, :keep] = (svd.u[:, :keep] * (s / norm)).to(self.B.dtype)
        if self.update.score == "loss":
            for seen in (self.inputs, self.outputs, self.rows):
                seen.zero_()
        self._left = keep
        return turn

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Base output plus update."""
        a, b = self._kept()
        if not a.shape[0]:
            return idle(y, self.A, self.B) if dist.is_available() and dist.is_initialized() else y
        x = self.dropped(x)
        if not self.looking:
            return add_low_rank(y, x, a, b, self.scale)
        inner = F.linear(x if torch.is_autocast_enabled(x.device.type) else x.to(a.dtype), a)
        if self._fresh is None:
            self._fresh = torch.zeros_like(self.inputs), torch.zeros_like(self.outputs), torch.zeros_like(self.rows)
        inputs, outputs, rows = self._fresh
        _add_gram(inputs, inner)
        rows += inner.numel() // inner.shape[-1]
        if inner.requires_grad:
            inner.register_hook(partial(_add_gram, outputs))  # type: ignore[no-untyped-call]
        return y + (F.linear(inner, b) * self.scale).to(y.dtype)

    def fuses(self, dtype: torch.dtype | None) -> bool:
        """Unless nothing is left, or the factors are of another type than the product."""
        return self.left > 0 and not self.looking and super().fuses(dtype)

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A frozen linear and the update in one function: see :mod:`paring.kernels.adapted`."""
        a, b = self._kept()
        return adapted_linear(x, weight, bias, a, b, None, self.scale, dropout=self.dropping)

    def factors(self) -> Factors:
        """A detached copy of the update, whose gate is one up to the last rank that is left and zero beyond."""
        gate = (torch.arange(self.A.shape[0], device=self.A.device) < self.left).to(torch.float32)
        return Factors(a=whole(self.A).clone(), b=whole(self.B).clone(), gate=gate, scale=self.scale)

    def train(self, mode: bool = True) -> Ordered:
        """Change the mode, and look anew: between training and evaluation somebody may have put other weights in.

        Not where the mode stays: transformers' Trainer sets it before every batch, and a look waits for the device.
        """
        if mode != self.training:
            self._left = None
        super().train(mode)
        return self

    def _kept(self) -> tuple[Tensor, Tensor]:
        left = self.A.shape[0] if torch.compiler.is_compiling() else self.left
        return (self.A, self.B) if left == self.A.shape[0] else (self.A[:left], self.B[:, :left])

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._left = self._settled = None
