"""Fully trained modules (``modules_to_save``): which module a head's tensors belong to, and what PEFT makes of its name."""

from __future__ import annotations

from collections.abc import Iterable

from paring.core.errors import ExportError
from paring.core.heads import IMPLIED


def owner(tensor: str, entries: Iterable[str]) -> str | None:
    """The module, of those that PEFT wraps for ``modules_to_save=entries``, that a tensor lies in; ``None`` if in none.

    PEFT wraps every module whose name ends with an entry, whatever comes before: ``classifier`` also means ``pre_classifier``
    (``_set_trainable`` in utils/other.py).

    >>> owner("bert.classifier.dense.weight", ["classifier"])
    'bert.classifier'
    >>> owner("classifier.weight", ["score"]) is None
    True
    """
    ends = tuple(entries)
    parts = tensor.split(".")
    for stop in range(1, len(parts)):
        path = ".".join(parts[:stop])
        if path.endswith(ends):
            return path
    return None


def modules_to_save(tensors: Iterable[str], task_type: str | None, names: Iterable[str] | None) -> list[str]:
    """The modules to list, sorted, so that PEFT finds each of these tensors, and finds no other.

    A head that the task implies is listed as a whole, any other tensor by the module that holds it.

    Raises:
        ExportError: a tensor lies in no module, or PEFT would ask for the trained weights of a module that has none here.
    """
    tensors = list(tensors)
    implied = IMPLIED.get(task_type or "", ())
    listed: set[str] = set()
    for tensor in tensors:
        parent = tensor.rpartition(".")[0]
        if not parent:
            raise ExportError(f"The trained tensor {tensor!r} lies in no module of the model, so PEFT cannot save it with an adapter.")
        listed.add(owner(tensor, implied) or parent)
    wrapped = tuple({*listed, *implied})
    for name in names or ():
        if wrapped and name.endswith(wrapped) and not any(tensor.startswith(f"{name}.") for tensor in tensors):
            raise ExportError(
                f"PEFT would ask for the trained weights of {name!r} (task type {task_type}, fully trained modules "
                f"{sorted(listed) or 'none'}), but the adapter has none; train that module too (modules_to_save)."
            )
    return sorted(listed)
