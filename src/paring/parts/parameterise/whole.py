"""Whole numbers among a slot's parameters: places, seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Whole(nn.Parameter):
    """A parameter of whole numbers: copied and saved as others are, touched by no cast, and never trained.

    PEFT asks for the gradients of all that an adapter holds, which torch refuses where there can be none; it is asked in vain here.
    """

    def __new__(cls, data: Tensor, requires_grad: bool = False) -> Whole:  # noqa: D102
        made: Whole = super().__new__(cls, data, requires_grad=False)
        return made

    def requires_grad_(self, requires_grad: bool = True) -> Whole:
        """Do nothing."""
        return self


class HoldsWhole(nn.Module):
    """A module with such parameters, which stay such however it is loaded and moved."""

    whole: ClassVar[tuple[str, ...]] = ()
    """Their names."""

    def whole_numbers(self, name: str, count: int, dtype: torch.dtype) -> None:
        """Make one, of zeros."""
        assert name in self.whole
        self.register_parameter(name, Whole(torch.zeros(count, dtype=dtype)))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As any module does; loaders set plain parameters."""
        if name in self.whole and param is not None and type(param) is not Whole:
            param = Whole(param.detach())
        super().register_parameter(name, param)

    def replaced(self) -> None:
        """To be overridden: the parameters have been loaded or moved."""

    def _kept(self) -> None:
        for name in self.whole:
            found = self._parameters[name]
            if type(found) is not Whole:
                assert found is not None
                self._parameters[name] = Whole(found.detach())
        self.replaced()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HoldsWhole:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._kept()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._kept()
