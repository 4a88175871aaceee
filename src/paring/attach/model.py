"""The tuner: finds the target modules, puts slots beside them, and answers what PEFT asks of a tuner."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from paring import rates, step
from paring.attach.config import ParingConfig
from paring.attach.find import layers
from paring.attach.layer import BASE, ParingLinear
from paring.attach.shapes import dense_weight, linear_shape
from paring.attach.targets import find_targets
from paring.core.errors import TargetError, near
from paring.kernels.norms import row_norms
from paring.lead import hook
from paring.method import Rate
from paring.parts.parameterise.base import Role, Source
from paring.parts.parameterise.followed import Followed
from paring.parts.parameterise.gated import Gated
from paring.parts.shape import Shape


class ParingModel(BaseTuner):
    """Hosts every method: one :class:`ParingLinear` a target module, one slot an adapter in it."""

    prefix = "paring_"
    tuner_layer_cls = ParingLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - as PEFT declares it

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Check every target before the first module is replaced, then let PEFT inject.

        Raises:
            TargetError: a name matches nothing (near names are shown), or a module that cannot be adapted; or a pattern is none.
            SettingError: the method cannot adapt a module of that shape.
        """
        config = self.peft_config[adapter_name]
        assert isinstance(config, ParingConfig)
        for path, module in find_targets(config, model).items():
            config.method.check(module.shape if isinstance(module, ParingLinear) else linear_shape(path, module))
        if config.seed is None:
            config.seed = int(torch.randint(2**31 - 1, ()).item())
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        adapted = layers(model)
        together = {path: slot for path, layer in adapted.items() if (slot := layer.slot(adapter_name)) is not None}
        config.method.join(together)
        for path, slot in together.items():
            # On the meta device it is about to be loaded.
            if not any(parameter.is_meta for parameter in slot.parameters()) and slot.wants is Source.WEIGHT:
                layer = adapted[path]
                slot.begin(dense_weight(path, layer.get_base_layer()), start_generator(config.seed, layer.shape))
            if slot.magnitude is not None and not slot.magnitude.is_meta:
                slot.magnitude.data.copy_(row_norms(dense_weight(path, adapted[path].get_base_layer()), None))
        config.method.lead(together, None)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, ParingConfig)
        assert peft_config.seed is not None
        layer = target if isinstance(target, ParingLinear) else ParingLinear(target, linear_shape(current_key, target))
        slot = peft_config.method.slot(layer.shape, _generator(peft_config.seed, layer.shape))
        if isinstance(slot, Gated):
            step.install()
        if isinstance(slot, Followed):
            hook.install()
        up = peft_config.method.rates().get(Role.UP, Rate())
        if up.fixed is None and up.multiple != 1.0:
            rates.expect(slot, up.multiple)
        layer.add_slot(adapter_name, slot)
        if adapter_name not in self.active_adapters:
            layer.paring_slot[adapter_name].requires_grad_(False)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put a module in another one's place, and nothing else: slots are on their base's device already.

        PEFT's own also hands over a weight and a bias, which a head of several layers (RoBERTa's) does not have. A head that was trained
        in full and is switched off leaves the one that it was trained beside.
        """
        off = isinstance(child, AuxiliaryTrainingWrapper) and child.disable_adapters
        setattr(parent, child_name, child.original_module if off else new_module)

    def _check_merge_allowed(self) -> None:
        """Refuse to merge into a weight that another module shares: that module would change with it."""
        holders = _holders(self.model)
        for path, layer in layers(self.model).items():
            inside = set(layer.modules())
            others = [
                name for name, module in holders.get(id(layer.get_base_layer()._parameters.get("weight")), ()) if module not in inside
            ]
            if others:
                raise TargetError(
                    f"Cannot merge: {path!r} shares its weight with {others[0]!r}, which the merge would change too. Load the base model "
                    "with tie_word_embeddings=False and a copy of the weight, or leave the module out."
                )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand ``adapter_names`` to every layer for the time of one forward or one ``generate``; PEFT drops it without this."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            raise TargetError("adapter_names is for inference; call model.eval() first.")
        known = {name for layer in self.modules() if isinstance(layer, ParingLinear) for name in layer.paring_slot}
        for name in names:
            if name != BASE and name not in known:
                raise TargetError(f"adapter_names asks for {name!r}, which is not on this model.{near(name, known)}")
        # A forward comes by this module (in PEFT 0.20 it calls the model's forward past its hooks), generate by the model's alone.
        check = partial(_check_rows, names=names, expansion=self._expansion(kwargs))
        handles = [module.register_forward_pre_hook(check, with_kwargs=True) for module in (self, self.model)]
        handles.extend(
            module.register_forward_pre_hook(partial(_give_names, names=names), with_kwargs=True)
            for module in self.modules()
            if isinstance(module, ParingLinear | AuxiliaryTrainingWrapper)
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _expansion(self, kwargs: Mapping[str, Any]) -> int:
        """How often ``generate`` repeats each row: once for each beam or returned sequence; the call's settings go before the model's."""
        stored = [vars(self.model).get("generation_config"), kwargs.get("generation_config")]
        sources = [*(vars(item) for item in stored if item is not None), kwargs]
        return max(
            next((int(source[key]) for source in reversed(sources) if source.get(key) is not None), 1)
            for key in ("num_beams", "num_return_sequences")
        )


def _check_rows(module: nn.Module, args: Any, kwargs: dict[str, Any], *, names: Sequence[str], expansion: int) -> None:
    """Refuse names that are not one for each row: a multiple of them would pass for a batch that ``generate`` has repeated."""
    batch = next(
        (value for value in (*_main_inputs(kwargs), *args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim >= 2), None
    )
    if batch is not None and len(batch) not in (len(names), len(names) * expansion):
        raise TargetError(f"adapter_names has {len(names)} entries for a batch of {len(batch)} rows; give one name for each row.")


def _main_inputs(kwargs: dict[str, Any]) -> Iterator[Any]:
    # Others, such as position_ids, may have one row for the whole batch.
    for key in ("input_ids", "inputs_embeds"):
        yield kwargs.get(key)


def _give_names(module: nn.Module, args: Any, kwargs: dict[str, Any], *, names: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    if isinstance(module, AuxiliaryTrainingWrapper) and args and isinstance(args[0], Tensor):
        # PEFT's own wrappers want one name for each row as it is now, also where ``generate`` has repeated the rows in place.
        names = [name for name in names for _ in range(len(args[0]) // len(names))]
    return args, {**kwargs, "adapter_names": names}


def start_generator(seed: int, shape: Shape) -> torch.Generator:
    """A generator for a start that is made from a matrix, another one than that of the slot itself."""
    return _generator(seed, shape, "start")


def _generator(seed: int, shape: Shape, *purpose: str) -> torch.Generator:
    """A generator of its own for each module, so that its start depends on the seed and its name alone."""
    digest = hashlib.blake2b("/".join([str(seed), shape.path, *purpose]).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)


def _holders(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """The modules that hold each parameter, under all their names, by the parameter's id."""
    found: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((name, module))
    return found
