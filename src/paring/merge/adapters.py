"""Merging whole adapters: what they must share, module by module, and what becomes of their heads."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from paring.core.adapter import Adapter, Metadata, natural
from paring.core.coding import member
from paring.core.entries import Entries
from paring.core.errors import AdapterError, SettingError
from paring.core.factors import Factors
from paring.core.heads import IMPLIED
from paring.merge.concatenation import Concatenation
from paring.merge.rule import Rule


@torch.no_grad()
def merge(adapters: Sequence[Adapter], rule: Rule, *, heads_of: int | None = None, base_model: str | None = None) -> Adapter:
    """Make one adapter out of several of the same base model.

    Sparse entries add up over the union of their places, by :class:`Concatenation` alone. Gates are folded and dead ranks dropped
    first. Ranks and modules may differ: where an adapter lacks a module, or has no live rank in it, its update there is zero. So
    a mean over n adapters divides by n, whoever has the module; what is not a mean over all (TIES's over those that agree, LEGO's over
    a group) does not count it.

    Args:
        adapters: at least two.
        rule: ``SVD(rank=16)``, ``TIES(density=0.2)``, ``Lego(rank=16)``, or another one of :mod:`paring.merge`.
        heads_of: the place of the adapter whose heads are kept. Without it heads are kept if one adapter has some, or all that have
            some have the same. Heads that differ are left out, as there is none that all tasks share: load each task's own.
        base_model: what to write as the base model; two adapters that call theirs by different names are then not refused.

    Returns:
        The merged adapter, with tensors of the adapters' types (the widest of them), computed in float32 or better, on the first
        one's device. It has a task type if its heads are of one, or all adapters have the same, which implies no head.

    Raises:
        SettingError: fewer than two adapters, no rule, not as many weights as adapters, a rank that the rule cannot give, or no
            such heads.
        AdapterError: the adapters have different base models, or a module of different shapes; or sparse entries where the rule is for
            factors, or magnitudes.
    """
    member("rule", rule, Rule)
    if len(adapters) < 2:
        raise SettingError(f"Give at least two adapters to merge, not {len(adapters)}.")
    for adapter in adapters:
        if isinstance(rule, Concatenation):
            adapter.check_added(f"Merging by {rule.name}")
        else:
            adapter.check_factors(f"Merging by {rule.name} (sparse entries add up by concatenation)")
    weights = rule.weigh(len(adapters))
    owner = _heads_owner(adapters, heads_of)
    metadata = _metadata(adapters, owner, base_model)
    held = [adapter.updates for adapter in adapters]
    for path in _paths(adapters):
        _check_shapes(path, [updates.get(path) for updates in held])
    modules = {path: [adapter.modules.get(path) for adapter in adapters] for path in _paths(adapters) if _has_factors(adapters, path)}
    ranks = {path: [0 if one is None else one.live_rank for one in found] for path, found in modules.items()}
    rule.check({path: found for path, found in ranks.items() if any(found)})
    generator = rule.generator()
    merged = {path: _merged(found, weights, rule, generator) for path, found in modules.items()}
    heads = {} if owner is None else adapters[owner].heads
    return Adapter(modules=merged, entries=_entries(adapters, weights), heads=heads, metadata=metadata)


def _entries(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Entries]:
    """The weighted sums of sparse entries, over the union of their places."""
    parts: dict[str, list[Entries]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for path, entries in adapter.entries.items():
            parts.setdefault(path, []).append(entries.times(weight))
    return {path: Entries.total(found) for path, found in parts.items()}


def weighted_sum(adapters: Sequence[Adapter], rule: Rule, *, base_model: str | None = None) -> Adapter:
    """The exact sum of the updates with a rule's weights, or their mean if it has none: what its result can be compared with."""
    return merge(adapters, Concatenation(weights=rule.shares(len(adapters))), base_model=base_model)


def _paths(adapters: Sequence[Adapter]) -> list[str]:
    return sorted({path for adapter in adapters for path in adapter.updates}, key=natural)


def _has_factors(adapters: Sequence[Adapter], path: str) -> bool:
    return any(path in adapter.modules for adapter in adapters)


def _merged(found: Sequence[Factors | None], weights: Sequence[float], rule: Rule, generator: torch.Generator) -> Factors:
    """One module; the types are the widest that came in, and so is what it is computed in, but float32 at least."""
    there = [(one, weight) for one, weight in zip(found, weights, strict=True) if one is not None]
    first = there[0][0]
    down, up = (_widest([vars(one)[side] for one, _ in there]) for side in ("a", "b"))
    precise = torch.promote_types(torch.promote_types(down, up), torch.float32)
    parts = [(_live(one, first.a.device, precise), weight) for one, weight in there if one.live_rank]
    if not parts:
        return Factors(a=first.a.new_zeros(0, first.in_features), b=first.b.new_zeros(first.out_features, 0))
    result = rule.combine([part for part, _ in parts], [weight for _, weight in parts], generator)
    return replace(result, a=result.a.to(down), b=result.b.to(up))


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _live(factors: Factors, device: torch.device, precise: torch.dtype) -> Factors:
    """Without dead ranks, the gate in B, the scale beside them."""
    live = factors.to(device=device, dtype=precise).prune()
    return live if live.gate is None else replace(live, b=live.b * live.gate, gate=None)


def _check_shapes(path: str, found: Sequence[Factors | Entries | None]) -> None:
    shapes = [(place, one.in_features, one.out_features) for place, one in enumerate(found) if one is not None]
    for place, *widths in shapes[1:]:
        if widths != list(shapes[0][1:]):
            first, other = (f"{wide} -> {high}" for wide, high in (shapes[0][1:], widths))
            raise AdapterError(
                f"Module {path!r} is {first} in adapter {shapes[0][0] + 1} and {other} in adapter {place + 1}: they were trained on "
                "different base models, so their updates do not add up. Merge adapters of one base model."
            )


def _heads_owner(adapters: Sequence[Adapter], asked: int | None) -> int | None:
    """The place of the adapter whose heads are kept, if any are."""
    owners = [place for place, adapter in enumerate(adapters) if adapter.heads]
    if asked is not None:
        if asked not in owners:
            said = f"those that do are {', '.join(map(str, owners))}" if owners else "none of them does"
            raise SettingError(f"heads_of={asked}: of the {len(adapters)} adapters (counted from 0) this one brings no heads; {said}.")
        return asked
    return owners[0] if owners and all(_same(adapters[owners[0]].heads, adapters[place].heads) for place in owners) else None


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def _metadata(adapters: Sequence[Adapter], owner: int | None, base_model: str | None) -> Metadata:
    found = [adapter.metadata for adapter in adapters]
    revisions = _known(one.revision for one in found)
    if base_model is None:
        bases = _known(one.base_model for one in found)
        for what, known in (("base models", bases), ("revisions of the base model", revisions)):
            if len(known) > 1:
                raise AdapterError(
                    f"The adapters are of different {what}, {' and '.join(map(repr, known))}, and updates of one mean nothing to another. "
                    "If these are names of the same weights, say what to call them (base_model=..., --model_name_or_path)."
                )
        base_model = bases[0] if bases else None
    for path in _paths(adapters):
        if len({path in one.metadata.fan_in_fan_out for one in adapters if path in one.updates}) > 1:
            raise AdapterError(
                f"The weight of {path!r} is stored transposed (fan_in_fan_out) in one adapter's base model and not in another's, so "
                "they are of different models. Merge adapters of one base model."
            )
    types = {one.task_type for one in found}
    common = types.pop() if len(types) == 1 else None
    return Metadata(
        base_model=base_model,
        revision=revisions[0] if len(revisions) == 1 else None,
        # A type that implies a head would make a loader ask for one that is not there.
        task_type=found[owner].task_type if owner is not None else None if common in IMPLIED else common,
        fan_in_fan_out=frozenset().union(*(one.fan_in_fan_out for one in found)),
    )


def _known(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name is not None))
