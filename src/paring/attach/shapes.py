"""Which modules can be adapted, and how wide they are."""

from __future__ import annotations

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from paring.core.errors import TargetError
from paring.parts.shape import Shape


def linear_shape(path: str, module: nn.Module) -> Shape:
    """The shape of a linear module: ``nn.Linear``, GPT-2's ``Conv1D``, or a quantised linear that answers like one.

    Raises:
        TargetError: not a linear module, or one whose forward is never called; the message names it.
    """
    if isinstance(module, NonDynamicallyQuantizableLinear):
        raise TargetError(
            f"Module {path!r} is the output layer inside nn.MultiheadAttention, which reads its weight and never calls it: "
            "an adapter there would do nothing. Leave it out with exclude_modules."
        )
    if isinstance(module, Conv1D):
        in_features, out_features = module.weight.shape
        return Shape(path=path, in_features=int(in_features), out_features=int(out_features))
    # Quantised linears are either subclasses of nn.Linear or say their widths under the same names; embeddings,
    # convolutions and bilinear modules have neither.
    widths = vars(module).get("in_features"), vars(module).get("out_features")
    if isinstance(widths[0], int) and isinstance(widths[1], int) and not isinstance(module, nn.Bilinear):
        return Shape(path=path, in_features=widths[0], out_features=widths[1])
    said = f"a {type(module).__name__}"
    if isinstance(module, nn.Embedding):
        said = "an embedding"
    elif isinstance(module, nn.MultiheadAttention):
        said = "a packed attention module"
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        said = "a convolution"
    raise TargetError(
        f"Module {path!r} is {said}, which paring does not adapt; it adapts linear modules (nn.Linear, GPT-2's Conv1D, "
        "quantised linears). Name linear modules in target_modules, or leave this one out with exclude_modules."
    )


def plain(base: nn.Module) -> bool:
    """Whether a linear module's weight is a floating-point matrix in one piece: neither quantised nor sharded."""
    if not isinstance(base, nn.Linear | Conv1D):
        return False
    weight = base.weight
    return type(weight) is nn.Parameter and type(weight.data) is Tensor and weight.dtype.is_floating_point and weight.dtype.itemsize >= 2


def plain_weight(path: str, base: nn.Module) -> tuple[nn.Parameter, bool]:
    """The weight that a merge may change, and whether it is stored as (in, out).

    Raises:
        TargetError: the weight is quantised, sharded or otherwise not a plain floating-point matrix.
    """
    if plain(base):
        assert isinstance(base.weight, nn.Parameter)
        return base.weight, isinstance(base, Conv1D)
    raise TargetError(
        f"Cannot merge into {path!r}: its weight ({type(base).__name__}) is quantised or sharded, and rounding the sum would lose the "
        "update. Load the base model in bfloat16 or float32, load the exported adapter onto it, and merge there."
    )


def dense_weight(path: str, base: nn.Module) -> Tensor:
    """The weight as (out, in), dequantised where need be.

    Raises:
        TargetError: it is sharded, or quantised in a way that PEFT cannot undo.
    """
    try:
        found = _int8(base)
        found = dequantize_module_weight(base) if found is None else found
    except (TypeError, AttributeError, ValueError, ImportError) as error:
        raise TargetError(
            f"The weight of {path!r} ({type(base).__name__}) cannot be read ({error}), and this method starts from it. Attach the adapter "
            "before the model is sharded, load the base model unquantised, or choose a method that starts from zero."
        ) from error
    weight = found.detach()
    if type(weight) not in (Tensor, nn.Parameter):
        raise TargetError(
            f"The weight of {path!r} is a {type(weight).__name__}, which cannot be read in one piece, and this method starts from it. "
            "Attach the adapter before the model is sharded, or choose a method that starts from zero."
        )
    return weight.T if isinstance(base, Conv1D) else weight


def _int8(base: nn.Module) -> Tensor | None:
    """The weight of an 8-bit linear of bitsandbytes: rows of int8 in units of their scale / 127. PEFT's way of reading it would move it."""
    weight, state = base._parameters.get("weight"), vars(base).get("state")
    if weight is None or weight.dtype is not torch.int8 or state is None:
        return None
    # The scales are the weight's until the first forward, and the state's from then on.
    scales = vars(weight).get("SCB")
    scales = vars(state).get("SCB") if scales is None else scales
    return None if scales is None else weight.data.float() * (scales.to(weight.device).float()[:, None] / 127.0)


def promoted(weight: Tensor) -> torch.dtype:
    """The type a merge is computed in: float32, or float64 for a float64 weight."""
    return torch.promote_types(weight.dtype, torch.float32)
