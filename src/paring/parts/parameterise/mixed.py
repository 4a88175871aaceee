r"""NOLA's parameterisation: :math:`\Delta W = s\,B A` with :math:`A = A_0 + \sum_i \alpha_i A_i` and :math:`B = \sum_j \beta_j B_j`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from paring.core.factors import Factors, whole
from paring.kernels.adapted import adapted_linear
from paring.kernels.low_rank import add_low_rank
from paring.kernels.random_bases import Bases
from paring.parts.initialise.kaiming import KaimingZero
from paring.parts.parameterise.base import Role
from paring.parts.parameterise.dropping import Dropping
from paring.parts.parameterise.waiting import frozen
from paring.parts.shape import Shape

BITS = 32
"""Of a seed: as many as torch's generator on a CPU takes."""


class Mixed(Dropping):
    r"""Coefficients :math:`\alpha` and :math:`\beta` (k,) trained, and three seeds (3, 32): of :math:`A_0`, of the A_i, of the B_j.

    A seed is kept bit by bit, as zeros and ones: a cast of the model to any type leaves them as they are, and they are copied and saved as
    other parameters. ``widths`` (out, in, 0) holds nothing and says by its shape what the adapter is for, which the coefficients do not:
    loading it into a module of other widths fails. The bases are made again from the seeds where they are needed, see
    :mod:`paring.kernels.random_bases`. A factor is formed once while its coefficients stay, and all calls of a forward share one way back
    to them.

    Args:
        shape: the module.
        rank: r.
        bases: k.
        scale: s.
        generator: the seeds are drawn from it.
        keep: hold the bases in memory once they have been made.
        dropout: probability of dropping an entry of the slot's input while training.
    """

    def __init__(
        self, shape: Shape, rank: int, bases: int, scale: float, generator: torch.Generator, keep: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(dropout)
        self.shape = shape
        self.rank = rank
        self.alpha, self.beta = nn.Parameter(torch.zeros(bases)), nn.Parameter(torch.zeros(bases))
        self.seed = frozen(torch.randint(2, (3, BITS), generator=generator, device="cpu").float())
        self.widths = frozen(torch.empty(shape.out_features, shape.in_features, 0))
        self.scale = scale
        self.keep = keep
        self._a, self._b = _Formed(), _Formed()

    def offset(self) -> Tensor:
        """A_0, float32 on the CPU: the start of LoRA's A."""
        generator = torch.Generator("cpu").manual_seed(self._seeds()[0])
        return KaimingZero().factors(self.shape, self.rank, self.scale, generator).a

    def bases(self) -> tuple[Bases, Bases]:
        """Those of A and those of B."""
        _, down, up = self._seeds()
        return (
            Bases(down, len(self.alpha), self.rank, self.shape.in_features),
            Bases(up, len(self.beta), self.shape.out_features, self.rank),
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def mixed(self) -> tuple[Tensor, Tensor]:
        """A and B, in the type of their coefficients also under autocast."""
        down, up = self.bases()
        return self._a.form(self.alpha, down, self.keep, self.offset), self._b.form(self.beta, up, self.keep, None)

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Base output plus update."""
        a, b = self.mixed()
        return add_low_rank(y, self.dropped(x), a, b, self.scale)

    def fuses(self, dtype: torch.dtype | None) -> bool:
        """Unless the factors are of another type than the product."""
        return dtype is None or self.alpha.dtype == self.beta.dtype == dtype

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A frozen linear and the update in one function: see :mod:`paring.kernels.adapted`."""
        a, b = self.mixed()
        return adapted_linear(x, weight, bias, a, b, None, self.scale, dropout=self.dropping)

    @torch.no_grad()
    def factors(self) -> Factors:
        """A copy of the update."""
        down, up = self.bases()
        alpha, beta = whole(self.alpha), whole(self.beta)
        return Factors(a=_sum(alpha, down, self.offset), b=_sum(beta, up, None), scale=self.scale)

    def update_roles(self) -> Iterator[tuple[str, nn.Parameter, Role]]:
        """The coefficients are trained, the seeds are not."""
        yield "alpha", self.alpha, Role.FACTOR
        yield "beta", self.beta, Role.UP
        yield "seed", self.seed, Role.FROZEN
        yield "widths", self.widths, Role.FROZEN

    def _seeds(self) -> list[int]:
        return [sum(1 << place for place, bit in enumerate(bits) if bit) for bits in (whole(self.seed) > 0.5).tolist()]

    def __getstate__(self) -> dict[str, Any]:
        # A copy forms its own factors: a graph leads to these parameters.
        return {**self.__dict__, "_a": _Formed(), "_b": _Formed()}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f"in={self.shape.in_features}, out={self.shape.out_features}, rank={self.rank}, bases={len(self.alpha)}, "
            f"scale={self.scale:g}, dropout={self.dropout:g}"
        )


@dataclass(frozen=True, eq=False)
class _Last:
    """A factor that has been formed, and what from.

    Attributes:
        bases, coefficients: what it was formed from, the coefficients as a copy.
        value: the factor.
        source: the parameter whose copy the coefficients are.
        linked: the same values as a function of that parameter, from when somebody trains it until a gradient has come back.
            Its graph holds no other tensor.
    """

    bases: Bases
    coefficients: Tensor
    value: Tensor
    source: Tensor
    linked: Tensor | None = None


class _Formed:
    """A factor as it was last formed.

    What it was formed from is compared by value: others write parameters in ways that nothing counts.
    """

    def __init__(self) -> None:
        self._last: _Last | None = None
        self._kept: Bases | None = None

    def form(self, coefficients: Tensor, bases: Bases, keep: bool, offset: Callable[[], Tensor] | None) -> Tensor:
        """The offset plus the mix.

        Args:
            coefficients: of the bases.
            bases: to be drawn.
            keep: hold what is drawn.
            offset: makes the constant; ``None`` is zero.
        """
        if keep:
            bases = self._keep(bases, coefficients.device)
        if type(coefficients) is not nn.Parameter:
            # A stand-in, as of torch.func, is not looked into.
            return _sum(coefficients, bases, offset)
        last = self._last
        if last is None or last.bases != bases or not _equal(last.coefficients, coefficients):
            # A tensor of inference mode could not be used in training.
            with torch.inference_mode(False), torch.no_grad():
                value = _sum(coefficients, bases, offset)
                self._last = last = _Last(bases, coefficients.detach().clone(), value, coefficients)
        if not (torch.is_grad_enabled() and coefficients.requires_grad):
            return last.value
        if last.linked is None or last.source is not coefficients:
            linked = bases.mix(coefficients, last.value)
            formed = weakref.ref(self)

            def passed(_: Tensor) -> None:
                owner = formed()
                if owner is not None:
                    owner._unlink()

            linked.register_hook(passed)  # type: ignore[no-untyped-call]
            self._last = replace(last, source=coefficients, linked=linked)
            return linked
        return last.linked

    def _unlink(self) -> None:
        """Forget the way back to the coefficients once a gradient has taken it.

        FSDP2 collects a module's gradients when that of its input is there, and autograd goes older ways last: by a way from an earlier
        forward, which coefficients that did not move would share, a gradient would come too late.
        """
        if self._last is not None:
            self._last = replace(self._last, linked=None)

    def _keep(self, bases: Bases, device: torch.device) -> Bases:
        kept = self._kept
        if kept is None or kept.drawn is None or kept.drawn.device != device or kept != bases:
            self._kept = kept = bases.keep(device)
        return kept


def _sum(coefficients: Tensor, bases: Bases, offset: Callable[[], Tensor] | None) -> Tensor:
    mixed = bases.mix(coefficients)
    return mixed if offset is None else mixed + offset().to(mixed)


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.device == right.device and left.dtype == right.dtype and torch.equal(left, right)
