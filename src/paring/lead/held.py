"""Whether one optimizer holds all that is chosen together, and leaves zeros alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch.optim import Optimizer

from paring.core.errors import StepError
from paring.parts.parameterise.followed import Followed
from paring.parts.update.length import averages


class Held:
    """Looks at an optimizer once, when it has taken its first step: only then it shows whether it averages.

    Args:
        slots: what is chosen together.
    """

    def __init__(self, slots: Mapping[str, Followed]) -> None:
        self._slots = dict(slots)
        self._checked: int | None = None

    def check(self, optimizer: Optimizer) -> None:
        """Refuse an optimizer that holds a part of the factors, after each of whose steps all slots would be counted and chosen anew.

        Raises:
            StepError: names a factor that it does not hold, or says that it averages.
        """
        if self._checked == id(optimizer):
            return
        kind = type(optimizer).__name__
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for path, slot in self._slots.items():
            for name, parameter in slot.named_parameters():
                if parameter.requires_grad and id(parameter) not in held:
                    raise StepError(
                        f"{kind} does not hold {name} of {path!r}, and the ranks of all modules are chosen together after its steps. Give "
                        "all trainable parameters of the adapter to one optimizer; paring.train.create_optimizer(model, lr=...) does."
                    )
        if any(averages(optimizer, group) for group in optimizer.param_groups):
            raise StepError(
                f"{kind} evaluates at an average of its iterates, in which ranks that were cut come back. Train with torch.optim.AdamW; "
                "paring.train.create_optimizer(model, lr=...) builds one."
            )
        self._checked = id(optimizer)
