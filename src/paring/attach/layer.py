"""The layer that stands in for an adapted linear module: the base layer and one slot for each adapter."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from paring.attach.fusible import fusible, tensors
from paring.attach.shapes import dense_weight, plain_weight, promoted
from paring.core.errors import TargetError
from paring.core.factors import Factors
from paring.kernels.norms import directed, row_norms
from paring.parts.parameterise.base import Role, Slot
from paring.parts.shape import Shape

BASE = "__base__"
"""The name that asks for the frozen model in a batch of mixed adapters, as in PEFT."""


class ParingLinear(nn.Module, BaseTunerLayer):
    """A linear module with slots beside it.

    PEFT's "all-linear" finds wrapped layers by the word Linear in the class name.

    Args:
        base_layer: the frozen module, called as it is.
        shape: its path and widths.
    """

    adapter_layer_names = ("paring_slot",)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.shape = shape
        self.training = base_layer.training
        self.in_features, self.out_features = shape.in_features, shape.out_features
        self.paring_slot = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._original: Tensor | None = None

    def slot(self, adapter: str) -> Slot | None:
        """The slot of an adapter, or ``None`` if it does not target this module."""
        if adapter not in self.paring_slot:
            return None
        found = self.paring_slot[adapter]
        assert isinstance(found, Slot)
        return found

    def add_slot(self, adapter: str, slot: Slot) -> None:
        """Put a slot beside the base layer, on its device and in its mode, training or evaluation."""
        self.paring_slot[adapter] = slot.train(self.base_layer.training)
        self._move_adapter_to_device_of_base_layer(adapter)
        self._freeze()

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        """Base output plus the updates of the active adapters, or of one adapter for each row with ``adapter_names``."""
        if self._disable_adapters:
            if self.merged:
                self.unmerge()
            result: Tensor = self.base_layer(x, *args, **kwargs)
            return result
        if adapter_names is not None:
            return self._mixed(x, adapter_names, *args, **kwargs)
        slots = self.paring_slot
        active = [] if self.merged_adapters else [name for name in self.active_adapters if name in slots]
        y: Tensor
        if len(active) == 1 and not args and not kwargs:
            slot, base = slots[active[0]], self.base_layer
            assert isinstance(slot, Slot)
            if fusible(base, slot, x):
                weight, bias = tensors(base)
                return self._turned(slot, slot.fused(x, weight.t() if isinstance(base, Conv1D) else weight, bias))
        y = before = self.base_layer(x, *args, **kwargs)
        for name in active:
            y = self._added(name, y, before, x)
        return y

    def _added(self, name: str, y: Tensor, before: Tensor, x: Tensor) -> Tensor:
        """``y`` and what an adapter adds to the base output ``before``."""
        slot = self.paring_slot[name]
        assert isinstance(slot, Slot)
        if slot.magnitude is None or y is before:
            result: Tensor = slot(y, x)
            return self._turned(slot, result)
        # Beside other adapters: its length is that of its own sum with the base.
        return y + (self._turned(slot, slot(before, x)) - before)

    def _turned(self, slot: Slot, y: Tensor) -> Tensor:
        r"""The output with the slot's magnitudes, :math:`y + (m / \lVert W + \Delta W \rVert - 1) \odot (y - b)`, lengths held constant."""
        if slot.magnitude is None:
            return y
        base = self.get_base_layer()
        ratio = slot.magnitude / row_norms(dense_weight(self.shape.path, base), slot.delta())
        bias = base._parameters.get("bias")
        plain = y if bias is None else y - bias
        return y + ((ratio - 1.0) * plain).to(y.dtype)

    def _mixed(self, x: Tensor, names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """One adapter for each row of the batch.

        Generation with beams or several return sequences repeats each row in place, so a batch that is a multiple of the names is
        such a batch, where it still has its sequence dimension.
        """
        if self.merged_adapters:
            raise TargetError("adapter_names cannot be used while adapters are merged; call unmerge_adapter() first.")
        repeat, rest = divmod(len(x), len(names))
        if rest or repeat < 1 or (repeat > 1 and x.ndim < 3):
            raise TargetError(
                f"adapter_names has {len(names)} entries, but {self.shape.path!r} got {len(x)} rows; give one name for each row."
            )
        rows: dict[str, list[int]] = {}
        for row in range(len(x)):
            rows.setdefault(names[row // repeat], []).append(row)
        y: Tensor = self.base_layer(x, *args, **kwargs)
        y = y.clone()
        for name, index in rows.items():
            if name != BASE and name in self.paring_slot:
                where = torch.tensor(index, device=x.device)
                before = y[where]
                y[where] = self._added(name, before, before, x[where])
        return y

    # -- merging -------------------------------------------------------------------------------------------------------

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The dense update of one adapter, in the layout of the base weight, float32."""
        slot = self.slot(adapter)
        assert slot is not None
        weight, transposed = plain_weight(self.shape.path, self.get_base_layer())
        delta = slot.delta().materialise(promoted(weight))
        if slot.magnitude is not None:
            stored = (weight.data if self._original is None else self._original).to(delta)
            original = stored.T if transposed else stored
            delta = directed(original + delta, slot.magnitude.detach()) - original
        return delta.T if transposed else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight. The weight as it was is kept, so that :meth:`unmerge` restores it bit for bit.

        Raises:
            TargetError: the base weight is quantised or sharded.
            ValueError: ``safe_merge`` and the sum is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.paring_slot:
                continue
            weight, _ = plain_weight(self.shape.path, self.get_base_layer())
            total = (weight.data.to(promoted(weight)) + self.get_delta_weight(name)).to(weight.dtype)
            if safe_merge and not bool(torch.isfinite(total).all()):
                raise ValueError(f"Merging adapter {name!r} into {self.shape.path!r} gives NaN or infinity; the adapter is broken.")
            if self._original is None:
                self._original = weight.data.clone()
            weight.data.copy_(total)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Restore the base weight, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged, nothing to do.", stacklevel=2)
            return
        weight, _ = plain_weight(self.shape.path, self.get_base_layer())
        assert self._original is not None
        weight.data.copy_(self._original)
        self._original = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Every slot is an additive update, which PEFT may approximate (``paring.export`` is exact and keeps the ranks)."""
        slot = self.slot(adapter_name)
        return slot is None or (slot.magnitude is None and isinstance(slot.delta(), Factors))

    # -- what may train ------------------------------------------------------------------------------------------------

    def _freeze(self) -> None:
        for slot in self.paring_slot.values():
            assert isinstance(slot, Slot)
            for _, parameter, role in slot.roles():
                if role is Role.FROZEN:
                    parameter.requires_grad_(False)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters and make them trainable, but for parameters whose role is frozen."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._freeze()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Make adapters trainable or not, but for parameters whose role is frozen."""
        super().set_requires_grad(adapter_names, requires_grad)
        self._freeze()

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"path={self.shape.path!r}"
