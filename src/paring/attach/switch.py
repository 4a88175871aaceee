r"""Sparse adapters put into the weights of their base model and taken out again, in place, by touching their own entries.

A low-rank adapter changes every entry of a weight, so putting it in costs a product and a pass over the whole weight. Sparse entries cost a
gather and a scatter of so many numbers. What was there before is kept, so that the base comes back bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

import torch
from torch import Tensor, nn

from paring.attach.fuse import check_fit, check_shared
from paring.attach.shapes import plain_weight, promoted
from paring.core.adapter import Adapter
from paring.core.errors import AdapterError, SettingError
from paring.merge import Concatenation, merge


class Switch:
    """A base model that wears one sparse adapter at a time, or the sum of several, or none.

    >>> switch = paring.Switch(model)                                 # doctest: +SKIP
    >>> switch.to(first)                                              # doctest: +SKIP
    >>> switch.to(first, second, weights=[0.5, 0.5])                  # doctest: +SKIP
    >>> switch.off()                                                  # doctest: +SKIP

    The weights are changed in place, so nothing else may train or change them in between. As a context manager it switches off on leaving.

    Args:
        model: the base model, without adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._heads: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def to(self, *adapters: Adapter, weights: Sequence[float] | None = None) -> None:
        """Take out what is in, and put in one adapter or the weighted sum of several. All is checked before a weight changes.

        Args:
            adapters: of sparse entries, as :func:`paring.read` or :func:`paring.snapshot` gives them. Heads come along, where one adapter
                alone is given or all have the same.
            weights: a factor for each; ``None`` is 1 for all.

        Raises:
            AdapterError: an adapter has factors, or belongs to another base model.
            TargetError: a weight is quantised, sharded or shared with another module.
            SettingError: the weights do not fit the adapters, or there is none.
        """
        total = _total(adapters, weights)
        check_fit(self.model, total)
        check_shared(self.model, total)
        modules = dict(self.model.named_modules())
        own = dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers())
        self.off()
        for path, entries in total.entries.items():
            weight, transposed = plain_weight(path, modules[path])
            index = entries.index.to(weight.device)
            if transposed:
                index = index % entries.in_features * entries.out_features + index // entries.in_features
            flat = weight.data.view(-1)
            before = flat.index_select(0, index)
            self._kept.append((flat, index, before))
            flat.index_copy_(0, index, (before.to(promoted(weight)) + entries.values.to(weight.device)).to(weight.dtype))
        for name, tensor in total.heads.items():
            self._heads.append((own[name], own[name].clone()))
            own[name].copy_(tensor)

    @torch.no_grad()
    def off(self) -> None:
        """Give the base its own values back, bit for bit."""
        for flat, index, before in self._kept:
            flat.index_copy_(0, index, before)
        for head, was in self._heads:
            head.copy_(was)
        self._kept, self._heads = [], []

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.off()


def _total(adapters: Sequence[Adapter], weights: Sequence[float] | None) -> Adapter:
    """What is put in: one adapter, or the weighted sum of several."""
    if not adapters:
        raise SettingError("Nothing to switch to: give at least one adapter, or call off().")
    for adapter in adapters:
        adapter.check_added("Switching")
        if adapter.modules:
            raise AdapterError(
                f"This adapter has low-rank factors ({len(adapter.modules)} modules, first: {next(iter(adapter.modules))!r}), which change "
                "every entry of a weight; only sparse entries are switched. Add it into the weights for good with paring.api.fuse."
            )
    factors = (1.0,) * len(adapters) if weights is None else tuple(weights)
    if len(factors) != len(adapters):
        raise SettingError(f"weights={factors}: give one for each of the {len(adapters)} adapters.")
    if len(adapters) > 1:
        return merge(adapters, Concatenation(weights=factors))
    only = adapters[0]
    return replace(only, entries={path: entries.times(factors[0]) for path, entries in only.entries.items()})
