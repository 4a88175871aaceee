"""Whether the learning rate of an optimizer is the length of its step, as a proximal step that follows it must know."""

from __future__ import annotations

from typing import Any

import torch

from paring.core.errors import StepError


def averages(optimizer: Any, group: dict[str, Any]) -> bool:
    """Whether the model is evaluated at an average of the points that an optimizer has stepped to."""
    # Schedule-free optimizers keep the sum of their weights in the group; the wrapper around other optimizers, a second point z.
    return "weight_sum" in group or any("z" in optimizer.state.get(parameter, ()) for parameter in group["params"])


def refuse(optimizer: Any, group: dict[str, Any], what: str) -> None:
    """Refuse an optimizer whose learning rate is not the length of its step, or whose averages destroy zeros.

    Args:
        optimizer: what has stepped, or will; any object with the attributes of one of torch.
        group: its parameter group.
        what: what lies in the group and is shrunk, for the message: "the gates".

    Raises:
        StepError: names the optimizer, the reason and the cure.
    """
    kind = type(optimizer).__name__
    cure = f"Step {what} with torch.optim.AdamW or SGD; paring.train.create_optimizer builds the groups."
    if isinstance(optimizer, torch.optim.LBFGS):
        raise StepError(f"{kind} chooses the length of its step by a line search, so rate x penalty is not its proximal step. {cure}")
    if isinstance(optimizer, torch.optim.Adafactor) or group.get("relative_step") or group.get("scale_parameter"):
        raise StepError(
            f"{kind} scales its step by the size of the parameter or by the step count, so its rate is not the step. "
            f"(transformers' Adafactor is right with relative_step=False, scale_parameter=False.) {cure}"
        )
    if "d" in group and ("d0" in group or "d_coef" in group or "k" in group):
        raise StepError(f"{kind} estimates its own step size (D-adaptation), so its rate is not the step. {cure}")
    if averages(optimizer, group):
        raise StepError(f"{kind} evaluates at an average of its iterates, and exact zeros do not survive averaging. {cure}")
    if group.get("lr") is None:
        raise StepError(f"{kind} has no learning rate in the group that holds {what}, so the threshold is unknown. {cure}")
