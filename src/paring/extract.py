r"""A LoRA out of weights that were trained in full: the best approximation of what training has added to each.

.. math:: \Delta = W_1 - W_0 = U\,\mathrm{diag}(\sigma)\,V^\top, \qquad A = \mathrm{diag}(\sqrt{\sigma_t})\,V_t^\top, \quad
    B = U_t\,\mathrm{diag}(\sqrt{\sigma_t})

with :math:`W_0` and :math:`W_1` of shape ``(out, in)`` and the leading t triplets of each module. By Eckart and Young no LoRA of rank t is
nearer, in the Frobenius norm. Nothing makes the difference of two trained weights one of low rank, so what was lost is told.

Source: the decomposition of a dense update that LoRA-Squeeze (arXiv 2602.10993) begins with; that the update comes out of full training,
and what a size is shared by, is ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from paring.core.adapter import Adapter, Metadata
from paring.core.coding import member
from paring.core.errors import AdapterError, near
from paring.core.factors import Factors
from paring.core.linalg import SVD, finite, randomised_svd, truncated_svd
from paring.parts.allocate.target import Loss, Target

OVERSAMPLE, ITERATIONS = 16, 6
"""Columns beyond the rank, and power iterations, of a sketch."""

SKETCHED = 8
"""A leading part is sketched where the matrix is at least so many times as wide as the sketch; elsewhere it is cut out of the whole."""


@torch.no_grad()
def extract(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    target: Target,
    *,
    heads: Mapping[str, Tensor] | None = None,
    metadata: Metadata | None = None,
    seed: int = 0,
) -> tuple[Adapter, dict[str, Loss]]:
    """Extract a LoRA.

    One module's update is held at a time, and beside it what is kept of the others: the factors with ``ToRank``, the singular values with
    the other targets, which decompose twice.

    Args:
        before: module path to its weight before training, ``(out, in)``; a weight that is stored transposed is turned by the caller.
        after: the same modules after training.
        target: ``ToRank(rank=16)``, ``ToEnergy(share=0.9)`` or ``ToBudget(budget=Bytes(count=2_000_000))``.
        heads: tensors that travel with the adapter as they are, by name.
        metadata: where it comes from.
        seed: of the sketches by which ``ToRank`` finds the leading part of a large matrix; they come close to the best.

    Returns:
        The adapter, on the CPU, of scale 1, in float32 or better, without the modules whose weights are the same to the bit; and what each
        of its modules has lost, as it is, rounding included. A module of full rank has lost nothing else.

    Raises:
        AdapterError: the two name different modules, shapes differ, or a weight is no matrix or holds NaN or infinity.
        SettingError: the target is no such object.
    """
    member("target", target, Target)
    _check_names(before, after)
    paths = [path for path in before if not _same(path, before[path], after[path])]
    found: dict[str, SVD] = {}
    spectra = []
    for path in paths:
        update = _update(before[path], after[path])
        if target.most is None:
            spectra.append(_without_rounding(torch.linalg.svdvals(update), update).cpu())
        else:
            found[path] = _leading(update, target.most, seed)
            spectra.append(found[path].s.cpu())
    counts = target.ranks(spectra, [sum(before[path].shape) for path in paths])
    modules, losses = {}, {}
    for path, count in zip(paths, counts, strict=True):
        update = _update(before[path], after[path])
        split = found.pop(path) if path in found else _leading(update, count, None)
        b, a = split.truncate(count).halves()
        modules[path] = Factors(a=a.cpu(), b=b.cpu())
        losses[path] = Loss(
            rank=count,
            before=min(update.shape),
            error=float(torch.linalg.matrix_norm(update - b @ a)),
            norm=float(torch.linalg.matrix_norm(update)),
        )
    return Adapter(modules=modules, heads=heads or {}, metadata=metadata or Metadata()), losses


def _check_names(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    for some, others, where in ((before, after, "after"), (after, before, "before")):
        for path in some:
            if path not in others:
                raise AdapterError(
                    f"Module {path!r} has no weight {where} training.{near(path, others)} Give the weights of the same modules twice."
                )


def _same(path: str, before: Tensor, after: Tensor) -> bool:
    """Whether training has left a weight as it was."""
    if before.ndim != 2 or before.shape != after.shape:
        raise AdapterError(
            f"Module {path!r} has a weight {tuple(before.shape)} before training and {tuple(after.shape)} after it; a LoRA is added to a "
            "matrix that keeps its shape. Give the two states of one model."
        )
    for weight in (before, after):
        if not finite(weight):
            raise AdapterError(f"The weight of {path!r} holds NaN or infinity; the run that wrote it diverged.")
    return torch.equal(*_wide(before, after))


def _wide(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one type of at least float32, where the weight after training lies."""
    precise = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    return before.detach().to(device=after.device, dtype=precise), after.detach().to(precise)


def _update(before: Tensor, after: Tensor) -> Tensor:
    first, second = _wide(before, after)
    return second - first


def _leading(update: Tensor, rank: int, seed: int | None) -> SVD:
    """The leading triplets, from a sketch where there is a seed and the matrix is large."""
    if seed is not None and SKETCHED * (rank + OVERSAMPLE) <= min(update.shape):
        generator = torch.Generator().manual_seed(seed)
        found = randomised_svd(update, rank, oversample=OVERSAMPLE, iterations=ITERATIONS, generator=generator)
    else:
        found = truncated_svd(update, rank)
    return found._replace(s=_without_rounding(found.s, update))


def _without_rounding(s: Tensor, update: Tensor) -> Tensor:
    """Singular values with zeros for those that are the rounding of the largest, which are no ranks."""
    return torch.where(s > s[:1] * max(update.shape) * torch.finfo(s.dtype).eps, s, 0.0)
