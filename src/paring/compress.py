r"""Making a trained adapter smaller: the best approximation of each update, to a rank, an energy, or a size for all modules together.

.. math:: s\,B\,\mathrm{diag}(g)\,A = U\,\mathrm{diag}(\sigma)\,V^\top, \qquad
    A' = \mathrm{diag}(\sqrt{\sigma_t / s})\,V_t^\top, \quad B' = U_t\,\mathrm{diag}(\sqrt{\sigma_t / s})

with the leading t triplets of each module, and its scale s as it was. By Eckart and Young no update of rank t is nearer, in the Frobenius
norm and in the spectral one; the squared error is the sum of the :math:`\sigma_i^2` that were left out. The decomposition goes through the
QR core of the factors, of the adapter's rank, never through a dense update.

Source: LoRA-Squeeze (arXiv 2602.10993) compresses module by module to one rank; that a budget is shared by all modules is ours. How it
splits the singular values between the factors could not be verified; here both get the root.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from paring.core.adapter import Adapter
from paring.core.coding import member
from paring.core.factors import Factors
from paring.core.linalg import SVD, product_svd
from paring.parts.allocate.target import Loss, Target, ToBudget, ToEnergy, ToRank

__all__ = ["Loss", "Target", "ToBudget", "ToEnergy", "ToRank", "compress"]


@torch.no_grad()
def compress(adapter: Adapter, target: Target) -> tuple[Adapter, dict[str, Loss]]:
    """Compress an adapter, whoever has trained it, without its base model.

    Args:
        adapter: what :func:`paring.read` or :func:`paring.snapshot` returns.
        target: ``ToRank(rank=16)``, ``ToEnergy(share=0.95)`` or ``ToBudget(budget=Parameters(count=40_000))``.

    Returns:
        The smaller adapter, its tensors of the types that they had, computed in float32 or better; and what each module has lost. Heads
        and origin are the adapter's own.

    Raises:
        SettingError: the target is no such object.
        AdapterError: the adapter holds sparse entries.
    """
    member("target", target, Target)
    adapter.check_factors("Compressing")
    splits = {path: _split(factors) for path, factors in adapter.modules.items()}
    spectra = [splits[path].s * abs(factors.scale) for path, factors in adapter.modules.items()]
    costs = [factors.in_features + factors.out_features for factors in adapter.modules.values()]
    counts = target.ranks(spectra, costs)
    modules, losses = {}, {}
    for (path, factors), s, count in zip(adapter.modules.items(), spectra, counts, strict=True):
        kind = factors.a.dtype
        b, a = splits.pop(path).truncate(count).halves()
        modules[path] = Factors(a=a.to(kind), b=b.to(factors.b.dtype), scale=factors.scale)
        squares = s.double().square()
        losses[path] = Loss(
            rank=count, before=factors.live_rank, error=float(squares[count:].sum().sqrt()), norm=float(squares.sum().sqrt())
        )
    return replace(adapter, modules=modules), losses


def _split(factors: Factors) -> SVD:
    """The update without its scale; the signs of gates are in the vectors."""
    live = factors.prune()
    precise = torch.promote_types(torch.float32, live.b.dtype)
    b = live.b if live.gate is None else live.b.to(precise) * live.gate.to(precise)
    if not live.rank:
        # QR wants at least one column.
        return SVD(b.new_zeros(factors.out_features, 0), b.new_zeros(0), b.new_zeros(0, factors.in_features))
    return product_svd(b.to(precise), live.a.to(precise))
