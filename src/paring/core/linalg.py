r"""Singular value decompositions of low-rank updates: truncated, randomised, and of a product that is never formed; finiteness.

All functions are pure. Input in float16 or bfloat16 is computed in float32, and so is what they return: singular values that span
several orders of magnitude do not fit the eight bits of a bfloat16. float64 stays float64. Singular vectors are unique up to sign
(and up to rotation where singular values coincide), so compare the matrices that they make, not the vectors.

Source: Halko, Martinsson and Tropp, Finding structure with randomness (2011), algorithms 4.4 and 5.1; the decomposition of a
product through its QR core is the one that LoRA-Squeeze (arXiv 2602.10993) uses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from paring.core.errors import AdapterError, SettingError


class SVD(NamedTuple):
    r"""A singular value decomposition :math:`M = U\,\mathrm{diag}(s)\,V^\top`, thin or truncated.

    Attributes:
        u: left singular vectors as columns, shape ``(out, k)``.
        s: singular values, descending, shape ``(k,)``.
        vt: right singular vectors as rows, shape ``(k, in)``.
    """

    u: Float[Tensor, "out k"]
    s: Float[Tensor, " k"]
    vt: Float[Tensor, "k in"]

    def truncate(self, rank: int) -> SVD:
        """The best approximation of at most this rank (Eckart and Young): the leading ``rank`` triplets.

        Raises:
            SettingError: ``rank`` is negative.
        """
        _check_rank(rank)
        return SVD(self.u[:, :rank], self.s[:rank], self.vt[:rank])

    def halves(self) -> tuple[Float[Tensor, "out k"], Float[Tensor, "k in"]]:
        r"""``(B, A)`` with :math:`B = U\,\mathrm{diag}(\sqrt s)`, :math:`A = \mathrm{diag}(\sqrt s)\,V^\top`: equal norms rank by rank."""
        root = self.s.sqrt()
        return self.u * root, root[:, None] * self.vt

    def materialise(self) -> Float[Tensor, "out in"]:
        """The dense matrix, ``U diag(s) V^T``."""
        return (self.u * self.s) @ self.vt


def finite(m: Tensor) -> bool:
    """Whether no entry is NaN or infinite; tensors of integers are finite.

    One sum says so of nearly all that are: it is finite only if all its terms are. It may overflow where they are large, so only
    what fails is looked at entry by entry, which takes some twenty times as long.
    """
    if not m.is_floating_point():
        return True
    total = m.sum(dtype=torch.promote_types(m.dtype, torch.float32))
    return bool(torch.isfinite(total)) or bool(torch.isfinite(m).all())


def truncated_svd(m: Float[Tensor, "out in"], rank: int) -> SVD:
    """The leading singular triplets of a dense matrix, from its full decomposition.

    Args:
        m: the matrix.
        rank: triplets wanted; ``min(rank, out, in)`` are returned. 0 is allowed.

    Raises:
        SettingError: ``rank`` is negative.
        AdapterError: ``m`` holds NaN or infinity.
    """
    _check_rank(rank)
    return SVD(*torch.linalg.svd(_ready(m), full_matrices=False)).truncate(rank)


def randomised_svd(m: Float[Tensor, "out in"], rank: int, *, oversample: int = 8, iterations: int = 4, generator: torch.Generator) -> SVD:
    r"""The leading singular triplets of a dense matrix, to high probability nearly the best, at the cost of a few thin products.

    An orthonormal :math:`Q` of ``rank + oversample`` columns that spans nearly the range of :math:`(M M^\top)^q M\,\Omega`, with
    :math:`\Omega` Gaussian, then the decomposition of the small :math:`Q^\top M`.

    Args:
        m: the matrix.
        rank: triplets wanted; ``min(rank, out, in)`` are returned. 0 is allowed.
        oversample: additional columns of the sketch, >= 0. Exact if ``rank + oversample >= min(out, in)``.
        iterations: :math:`q \ge 0`, power iterations; each makes the singular values that are not wanted fade faster.
        generator: the only source of randomness: the same seed gives the same bits. It may live on another device than ``m``.

    Raises:
        SettingError: ``rank``, ``oversample`` or ``iterations`` is negative.
        AdapterError: ``m`` holds NaN or infinity.
    """
    _check_rank(rank)
    if oversample < 0 or iterations < 0:
        raise SettingError(f"oversample={oversample}, iterations={iterations}: both must be at least 0.")
    m = _ready(m)
    width = min(rank + oversample, *m.shape)
    omega = torch.randn(m.shape[1], width, generator=generator, device=generator.device, dtype=m.dtype).to(m.device)
    q = torch.linalg.qr(m @ omega).Q
    for _ in range(iterations):
        # Orthonormal again after every product: left alone, all columns would turn into the first singular vector.
        q = torch.linalg.qr(m @ torch.linalg.qr(m.T @ q).Q).Q
    u, s, vt = torch.linalg.svd(q.T @ m, full_matrices=False)
    return SVD(q @ u, s, vt).truncate(rank)


def product_svd(b: Float[Tensor, "out r"], a: Float[Tensor, "r in"], rank: int | None = None) -> SVD:
    r"""The singular value decomposition of :math:`B A` from the factors, without forming the product.

    .. math:: B = Q_B R_B,\quad A^\top = Q_A R_A,\quad R_B R_A^\top = U\,\mathrm{diag}(s)\,V^\top
        \;\Rightarrow\; B A = (Q_B U)\,\mathrm{diag}(s)\,(Q_A V)^\top

    The core :math:`R_B R_A^\top` is ``min(r, out) x min(r, in)``, so it costs as much as a matrix of the adapter's rank, whatever
    the module's size.

    Args:
        b: up-projection, any gate and scale folded in.
        a: down-projection.
        rank: triplets wanted; ``None`` for all. ``min(rank, r, out, in)`` are returned; those beyond the rank of the product have
            singular values of zero, up to rounding.

    Returns:
        Orthonormal ``u`` and ``vt`` also where the product is zero.

    Raises:
        SettingError: ``rank`` is negative.
        AdapterError: a factor holds NaN or infinity.
    """
    b, a = _ready(b), _ready(a)
    left, right = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, s, vt = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    result = SVD(left.Q @ u, s, vt @ right.Q.T)
    return result if rank is None else result.truncate(rank)


class Split(NamedTuple):
    r"""A product of factors as a sum of terms of falling weight, :math:`B A = \sum_i (B q_i)(p_i A)`.

    Attributes:
        s: weights of the terms, descending, shape ``(k,)``.
        p: rows that mix those of A, shape ``(k, r)``.
        q: columns that mix those of B, shape ``(r, k)``.
    """

    s: Float[Tensor, " k"]
    p: Float[Tensor, "k r"]
    q: Float[Tensor, "r k"]


def weighted_split(outer: Float[Tensor, "r r"], inner: Float[Tensor, "r r"]) -> Split:
    r"""The best split of :math:`B A` in the norm :math:`\lVert G^{1/2} M X^{1/2} \rVert_F`, from the factors' Gram matrices alone.

    With :math:`D = B^\top G B` (``outer``), :math:`C = A X A^\top` (``inner``) and :math:`D^{1/2} C^{1/2} = U\,\mathrm{diag}(s)\,V^\top`,
    the first k terms :math:`q = D^{-1/2} U`, :math:`p = U^\top D^{1/2}` are the closest that rank k can come, at a distance of
    :math:`\sqrt{\sum_{i > k} s_i^2}`. With G and X identities it is the truncated singular value decomposition.

    Args:
        outer: symmetric, positive semidefinite.
        inner: likewise.

    Returns:
        All r terms, in float64; those outside the range of D are zero.

    Raises:
        AdapterError: one of them holds NaN or infinity.
    """
    outer, inner = _ready(outer), _ready(inner)
    values, vectors = torch.linalg.eigh(outer.double())
    # Below this an eigenvalue is the rounding of what was given, and its inverse would be noise.
    some = values > values.sum() * torch.finfo(outer.dtype).eps
    values = values * some
    root = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors * torch.where(some, values, 1.0).rsqrt() * some) @ vectors.T
    inside, basis = torch.linalg.eigh(inner.double())
    u, s, _ = torch.linalg.svd(root @ (basis * inside.clamp_min(0.0).sqrt()))
    # What is no more than the rounding of the rest is nothing: nobody is to keep it.
    s = torch.where(s > s.sum() * 1e-12, s, 0.0)
    return Split(s=s, p=u.T @ root, q=inverse @ u)


def truncation_errors(s: Float[Tensor, " k"]) -> Float[Tensor, " k+1"]:
    r"""Frobenius error of cutting a decomposition at each rank: entry ``t`` is :math:`\sqrt{\sum_{i > t} s_i^2}` for ``t = 0 .. k``.

    Entry 0 is the norm of the whole, the last entry is 0; no matrix of rank ``t`` comes closer (Eckart and Young).

    Args:
        s: singular values, descending.
    """
    largest = s[:1].clamp_min(torch.finfo(s.dtype).tiny)
    # In units of the largest, so that squares do not overflow; summed from the smallest, so that they are not lost.
    squares = (s / largest).square()
    tails = squares.flip(0).cumsum(0).flip(0).sqrt() * largest
    return torch.cat([tails, s.new_zeros(1)])


def orthonormal_defect(q: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
    r"""How far the columns are from orthonormal, :math:`\lVert Q^\top Q - I \rVert_F`; give ``q.T`` for rows."""
    q = _wide(q)
    defect: Tensor = torch.linalg.matrix_norm(q.T @ q - torch.eye(q.shape[1], dtype=q.dtype, device=q.device))
    return defect


def _wide(m: Tensor) -> Tensor:
    return m.float() if m.dtype in (torch.float16, torch.bfloat16) else m


def _ready(m: Tensor) -> Tensor:
    if not finite(m):
        raise AdapterError(f"A matrix {tuple(m.shape)} holds NaN or infinity and so has no singular values; its training diverged.")
    return _wide(m)


def _check_rank(rank: int) -> None:
    if rank < 0:
        raise SettingError(f"rank={rank}: give a whole number of at least 0.")
