r"""Which modules an ``adapter_config.json`` means: PEFT's two matchers, written for and replayed.

- *Targets.* A module is adapted if its name equals an entry of ``target_modules`` or ends with ``"." + entry``; a string instead
  of a list is a regular expression for the whole name. ``exclude_modules`` is read the same way and wins.
- *Patterns.* A key of ``rank_pattern`` and ``alpha_pattern`` matches a name by ``(.*\.)?(key)$``; the first key that matches wins.

Both look at the end of a name, so ``fc`` also means ``enc.fc``; in a pattern's key a dot is any character, too.

What :func:`plan` writes, and why: ``target_modules`` is a list, since that is what every loader knows; a name's last part where
all modules of that name are adapted (older SGLang knows nothing longer), else the full name. A module that such an entry hits
without being adapted is named in ``exclude_modules``, as one expression for whole names, which is the only form that is exact
when the excluded name is itself the end of an adapted one. Only PEFT reads that key, and only PEFT needs it: vLLM, llama.cpp,
LoRAX and SGLang find modules by their tensors.

Source: peft 0.20 to 0.21, ``check_target_module_exists`` (tuners/tuners_utils.py) and ``get_pattern_key`` (utils/other.py), read.
vLLM >= 0.32 matches pattern keys likewise (its wheels, read).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from paring.core.adapter import natural
from paring.core.errors import AdapterError, ExportError, near
from paring.exchange.expressions import Clock, Expression, Keys, blank, ends


class Selection:
    """The keys of a configuration that say which modules are adapted.

    Args:
        target_modules: names or ends of names, or one expression for whole names; ``"all-linear"`` is every module.
        exclude_modules: likewise, and wins.
        modules_to_save: fully trained modules; nothing inside them is adapted.
        layers_to_transform: layers that a name found by its end must lie in; empty for all.
        layers_pattern: what the list of layers is called; empty for any name.
        clock: the time that matching may take.

    Raises:
        AdapterError: an entry that should be a regular expression is not one.
    """

    def __init__(
        self,
        *,
        target_modules: Iterable[str] | str,
        exclude_modules: Iterable[str] | str = (),
        modules_to_save: Iterable[str] = (),
        layers_to_transform: Iterable[int] = (),
        layers_pattern: Iterable[str] = (),
        clock: Clock | None = None,
    ) -> None:
        clock = clock or Clock()
        self._targets = _Ends(target_modules, clock)
        self._every = target_modules == "all-linear"
        self._excluded = _Ends(exclude_modules, clock)
        self._saved = [Expression(entry, r"(^|.*\.)", r"($|\..*)", clock) for entry in modules_to_save]
        self._layers = frozenset(layers_to_transform)
        # Without a name for the list of layers, the first number that two names precede is the layer.
        self._lists = [Expression(entry, r"(?:^|.*?\.)", r"\.(?P<idx>\d+)\.", clock) for entry in layers_pattern] or [
            Expression("", r".*?\.[^.]*", r"\.(?P<idx>\d+)\.", clock)
        ]

    def hits(self, name: str) -> bool:
        """Whether PEFT adapts the module ``name``, if it is of a kind that can be adapted."""
        if self._excluded.match(name) or any(entry.match(name) is not None for entry in self._saved):
            return False
        if self._every:
            return True
        if not self._targets.match(name):
            return False
        return not self._layers or self._targets.exact(name) or self._layer(name) in self._layers

    def _layer(self, name: str) -> int | None:
        found = next((match for match in (entry.match(name) for entry in self._lists) if match is not None), None)
        if found is not None and found["idx"] is None:
            raise AdapterError("layers_pattern means a list of layers only in part; name the list, as in 'layers', or leave it out.")
        return None if found is None else int(found["idx"])


class _Ends:
    """A list of names or ends of names, or one expression for whole names."""

    def __init__(self, entries: Iterable[str] | str, clock: Clock) -> None:
        self._expression = Expression(entries, "(?:", r")\Z", clock) if isinstance(entries, str) and entries else None
        names = () if isinstance(entries, str) else tuple(entries)
        self._names = frozenset(names)

    def match(self, name: str) -> bool:
        if self._expression is not None:
            return self._expression.match(name) is not None
        return any(end in self._names for end in ends(name))

    def exact(self, name: str) -> bool:
        """Found without looking at layers: an expression for whole names, or the whole name."""
        return self._expression is not None or name in self._names


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a configuration says which modules are adapted, at which ranks.

    Attributes:
        target_modules: sorted names or ends of names.
        exclude_modules: an expression for whole names, or ``None`` if the list above is exact.
        rank_pattern: a key for every module, sorted; empty if all ranks are equal.
    """

    target_modules: tuple[str, ...]
    exclude_modules: str | None
    rank_pattern: Mapping[str, int]


def plan(ranks: Mapping[str, int], names: Iterable[str] | None, modules_to_save: Iterable[str] = ()) -> Plan:
    """Write targets and patterns for these modules, and replay PEFT's matchers over all names to see that they mean it.

    Args:
        ranks: the modules to adapt, with their ranks.
        names: all module names of the base model; ``None`` if unknown, then full names are all that can be done.
        modules_to_save: the fully trained modules.

    Raises:
        ExportError: a module is not one of the model's, or would be missed, hit without being adapted, or get another rank.
    """
    known = sorted({*(names or ranks), *ranks} - {""}, key=natural)
    if names is not None:
        for path in sorted(ranks.keys() - set(names), key=natural):
            raise ExportError(
                f"Module {path!r} of the adapter is not in the model.{near(path, known)} Export with the model it was trained on."
            )
    targets = _targets(ranks, known, whole=names is None)
    matcher = _Ends(targets, Clock())
    hit = [name for name in known if name not in ranks and matcher.match(name)]
    excluded = "|".join(re.escape(name) for name in hit) or None
    unclear = ambiguous(ranks)
    keys = {(f"^{re.escape(path)}" if path in unclear else path): rank for path, rank in ranks.items()}
    made = Plan(
        target_modules=tuple(targets),
        exclude_modules=excluded,
        rank_pattern=dict(sorted(keys.items())) if len(set(ranks.values())) > 1 else {},
    )
    replay(made, ranks, known, modules_to_save)
    return made


def replay(made: Plan, ranks: Mapping[str, int], names: Iterable[str], modules_to_save: Iterable[str] = ()) -> None:
    """Match every name as PEFT would.

    Raises:
        ExportError: a module would be missed, hit without being adapted, or get another rank.
    """
    clock = Clock()
    selection = Selection(
        target_modules=made.target_modules,
        exclude_modules=made.exclude_modules or (),
        modules_to_save=modules_to_save,
        clock=clock,
    )
    keys = Keys(made.rank_pattern, clock)
    default = max(ranks.values())
    for name in names:
        hit = selection.hits(name)
        if hit != (name in ranks):
            verb = "be adapted by it, though it is not" if hit else "be left out, though it is adapted"
            raise ExportError(
                f"No list of targets says what is meant: module {name!r} would {verb}. A fully trained module (modules_to_save) cannot "
                "hold adapted ones; otherwise rename the module."
            )
        if hit:
            key = keys.first(name)
            rank = default if key is None else made.rank_pattern[key]
            if rank != ranks[name]:
                raise ExportError(
                    f"Module {name!r} has rank {ranks[name]}, but the pattern {key!r} would give it {rank}; rename the module."
                )


def ambiguous(names: Iterable[str]) -> set[str]:
    """The names that, read as a pattern's key, also match another of the names.

    >>> sorted(ambiguous(["fc", "enc.fc", "layer.1.fc", "layer.10.fc"]))
    ['fc']
    """
    names = list(names)
    found_ends: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for name in names:
        for end in ends(name):
            found_ends[len(end)].append((end, name))
    # Keys of one length with dots in the same places are looked up together: blank those places out, and equal means a match.
    alike: dict[tuple[int, tuple[int, ...]], set[str]] = defaultdict(set)
    for name in names:
        alike[len(name), tuple(place for place, letter in enumerate(name) if letter == ".")].add(name)
    found: set[str] = set()
    for (length, dots), keys in alike.items():
        for end, owner in found_ends[length]:
            key = blank(end, dots)
            if key in keys and key != owner:
                found.add(key)
    return found


def _targets(ranks: Mapping[str, int], known: Iterable[str], *, whole: bool) -> list[str]:
    """The last part of a name where it means adapted modules only, else the full name; sorted."""
    if whole:
        return sorted(ranks)
    others = {name.rpartition(".")[2] for name in known if name not in ranks}
    lasts = {path: path.rpartition(".")[2] for path in ranks}
    return sorted({path if last in others else last for path, last in lasts.items()})
