"""The linter: what each engine would make of an adapter folder, against what was trained. No base model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from paring.core.adapter import Adapter, natural
from paring.core.errors import AdapterError
from paring.core.factors import Factors
from paring.core.linalg import finite
from paring.exchange import rules, settings, sparse
from paring.exchange.compare import differences, probes, response
from paring.exchange.contents import Applied, Contents, Level, Verdict
from paring.exchange.folder import check_links
from paring.exchange.layout import CONFIG, SIDE, WEIGHTS, factor_key, split_key
from paring.exchange.provenance import Provenance
from paring.exchange.read import read
from paring.exchange.tensors import opened


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine's rule.

    Attributes:
        name: a short name, as the command line has it.
        title: its name and versions.
        rule: what it would do with a folder; its docstring names the source.
    """

    name: str
    title: str
    rule: Callable[[Contents], Verdict]

    @property
    def source(self) -> str:
        """Where the rule comes from, out of its docstring."""
        return " ".join((self.rule.__doc__ or "").partition("Source:")[2].split())


PEFT = Engine(name="peft", title="PEFT", rule=rules.peft)
TRANSFORMERS = Engine(name="transformers", title="transformers", rule=rules.transformers)
VLLM_0_31 = Engine(name="vllm_0_31", title="vLLM <= 0.31", rule=rules.vllm_0_31)
VLLM_0_32 = Engine(name="vllm_0_32", title="vLLM >= 0.32", rule=rules.vllm_0_32)
SGLANG = Engine(name="sglang", title="SGLang", rule=rules.sglang)
LLAMA_CPP = Engine(name="llama_cpp", title="llama.cpp", rule=rules.llama_cpp)
LORAX = Engine(name="lorax", title="LoRAX", rule=rules.lorax)

ALL: tuple[Engine, ...] = (PEFT, TRANSFORMERS, VLLM_0_31, VLLM_0_32, SGLANG, LLAMA_CPP, LORAX)
BY_NAME: Mapping[str, Engine] = {engine.name: engine for engine in ALL}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one engine would do.

    Attributes:
        engine: the engine's name.
        level: ``"ok"``, ``"warning"`` (right under a condition) or ``"error"`` (wrong, or refused).
        module: the module concerned, or ``None`` for several or the whole folder.
        message: what it would do, with the ratio of scales where there is one, and the cure.
        modules: all modules concerned; empty for the whole folder.
    """

    engine: str
    level: Level
    module: str | None
    message: str
    modules: tuple[str, ...] = ()


def lint(folder: str | Path, *, truth: Adapter | None = None, engines: Sequence[Engine] = ALL) -> list[Finding]:
    r"""Compare the update that each engine would apply with the trained one, :math:`s\,B\,\mathrm{diag}(g)\,A`, on random inputs.

    Args:
        folder: a PEFT adapter folder.
        truth: the adapter as it was trained; ``None`` takes what PEFT itself would apply.
        engines: the engines to ask.

    Returns:
        Findings in the order of ``engines``; at least one for each, and one for all modules of which the same is to be said.

    Raises:
        AdapterError: the folder cannot be read at all, or its weights are not those that were exported.
    """
    folder = Path(folder)
    check_links(folder)
    config = settings.load(folder / CONFIG)
    if config.get("peft_type") == sparse.KIND:
        return list(_sparse(folder, truth, engines))
    if config.get("peft_type") != "LORA":
        settings.refuse(config)
    provenance = Provenance.load(folder / SIDE if (folder / SIDE).is_file() else None)
    with opened(folder / WEIGHTS) as file, provenance.checking(folder / WEIGHTS):
        targeted = set(provenance.modules or {}) if truth is None else set(truth.modules)
        contents = Contents(
            config=config,
            shapes={key: shape for key, (_, shape) in file.shapes.items()},
            dead=frozenset(path for path in targeted if factor_key(path, "A") not in file.shapes),
        )
        if not contents.ranks:
            raise AdapterError(f"{WEIGHTS} in {str(folder)!r} holds no LoRA factors; keys look like {factor_key('<module>', 'A')!r}.")
        pairs = _pairs(contents, truth, file.tensor)
        tolerance = max((_TOLERANCES.get(dtype, 0.0) for key, (dtype, _) in file.shapes.items() if split_key(key) is not None), default=0.0)
    findings: list[Finding] = []
    for engine in engines:
        findings += _judge(engine, contents, pairs, tolerance)
    return findings


def _sparse(folder: Path, truth: Adapter | None, engines: Sequence[Engine]) -> Iterator[Finding]:
    """Sparse entries: PEFT's own method, which engines that know LoRA alone do not load."""
    adapter = read(folder)
    far = {} if truth is None else differences(adapter, truth, torch.Generator().manual_seed(0))
    wrong = [path for path, distance in far.items() if not distance <= _TOLERANCES["BF16"]]
    for engine in engines:
        if engine is not PEFT:
            why = "knows LoRA alone and would refuse sparse entries"
            if engine is TRANSFORMERS:
                why = "would load the values and draw their places anew (load_adapter); PeftModel.from_pretrained loads both"
            message = f"{engine.title} {why}. Load it with PEFT, or merge it into its base model."
            yield Finding(engine=engine.name, level="error", module=None, message=message)
        elif wrong:
            message = f"{engine.title} would apply another update than the trained one; export it again.{_listed(wrong)}"
            yield Finding(engine=engine.name, level="error", module=None, message=message, modules=tuple(wrong))
        else:
            message = f"{engine.title} applies the trained update in all {len(adapter.entries)} modules, as SHiRA."
            yield Finding(engine=engine.name, level="ok", module=None, message=message)


# Relative errors of random probes that rounding to a dtype explains, with room.
_TOLERANCES = {"F64": 1e-4, "F32": 1e-4, "F16": 5e-3, "BF16": 2e-2}
_SHOWN = 3
_ABSENT = Applied(scale=0.0, because="the folder has no tensors of it", cure=rules.AGAIN)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """One module on the same random inputs.

    Attributes:
        stored: ``B A x`` as stored; ``None`` where the folder has no tensors of it.
        trained: the trained update; ``None`` where there is none.
    """

    stored: Tensor | None
    trained: Tensor | None


def _pairs(contents: Contents, truth: Adapter | None, tensor: Callable[[str], Tensor]) -> dict[str, _Pair]:
    generator = torch.Generator(device="cpu").manual_seed(0)
    scales = settings.Scales(contents.config) if truth is None else None
    pairs: dict[str, _Pair] = {}
    for path in sorted({*contents.ranks, *(truth.modules if truth is not None else ())}, key=natural):
        stored = trained = None
        expected = None if truth is None else truth.modules.get(path)
        if path in contents.ranks:
            held = Factors(a=tensor(factor_key(path, "A")), b=tensor(factor_key(path, "B")))
            if not held.a.is_floating_point() or not (finite(held.a) and finite(held.b)):
                raise AdapterError(
                    f"Module {path!r} holds NaN, infinity or integers; the file is damaged, or the run that wrote it diverged."
                )
            x = probes(held.in_features, generator)
            stored = response(held, x)
            if scales is not None:
                trained = stored * scales.scale_of(path)
            elif expected is not None and (expected.in_features, expected.out_features) == (held.in_features, held.out_features):
                trained = response(expected, x)
            elif expected is not None:
                raise AdapterError(
                    f"Module {path!r} is {held.in_features} -> {held.out_features} in the folder, but {expected.in_features} -> "
                    f"{expected.out_features} as trained: the folder is of another model."
                )
        elif expected is not None:
            trained = response(expected, probes(expected.in_features, generator))
        pairs[path] = _Pair(stored=stored, trained=trained)
    return pairs


def _judge(engine: Engine, contents: Contents, pairs: Mapping[str, _Pair], tolerance: float) -> Iterator[Finding]:
    try:
        verdict = engine.rule(contents)
    except AdapterError as error:
        # What is not PEFT's format in the first place, no engine loads.
        yield Finding(engine=engine.name, level="error", module=None, message=f"{engine.title} cannot load it: {error}")
        return
    clean = True
    for complaint in verdict.complaints:
        clean = False
        yield Finding(engine=engine.name, level=complaint.level, module=complaint.module, message=f"{engine.title}: {complaint.message}")
    if verdict.refused:
        return
    scales = settings.Scales(contents.config)
    said: dict[str, list[str]] = {}
    for path, pair in pairs.items():
        message = _compare(pair, verdict.applied.get(path, _ABSENT), tolerance, partial(scales.scale_of, path))
        if message is not None:
            clean = False
            said.setdefault(message, []).append(path)
    for message, paths in said.items():
        yield Finding(
            engine=engine.name,
            level="error",
            module=paths[0] if len(paths) == 1 else None,
            message=f"{engine.title} {message}{_listed(paths)}",
            modules=tuple(paths),
        )
    if clean:
        yield Finding(
            engine=engine.name, level="ok", module=None, message=f"{engine.title} applies the trained update in all {len(pairs)} modules."
        )


def _compare(pair: _Pair, applied: Applied, tolerance: float, meant: Callable[[], float]) -> str | None:
    """What is wrong with what an engine applies, and what helps; ``None`` if nothing is wrong.

    Args:
        pair: the module.
        applied: what the engine makes of it.
        tolerance: what rounding explains.
        meant: the scale that the folder itself gives to the module, which reading and writing it again keeps.
    """
    got = pair.stored * applied.scale if pair.stored is not None else None
    wanted, given = _norm(pair.trained), _norm(got)
    if wanted == 0.0:
        return None if given == 0.0 else "would apply an update here, where training left none; the folder is not what was trained."
    assert pair.trained is not None
    if not math.isfinite(wanted):
        return f"has no update to apply that numbers can hold: alpha or the factors are too large. {rules.AGAIN}"
    if pair.stored is None or got is None or applied.scale == 0.0:
        return f"would not apply this module's update ({applied.because}). {applied.cure or rules.AGAIN}"
    if float((got - pair.trained).norm()) <= tolerance * wanted:
        return None
    # Divided first: the square of a norm may be no number any more.
    ratio = float((got / wanted * (pair.trained / wanted)).sum())
    if float((got - ratio * pair.trained).norm()) <= tolerance * given:
        # Only a folder that means the trained update can be written again in another layout.
        sound = float((pair.stored * meant() - pair.trained).norm()) <= tolerance * wanted
        return f"would apply {ratio:.4g} times the trained update ({applied.because}). {rules.UNIFORM if sound else rules.AGAIN}"
    return "would apply another update than the trained one; the folder is not what was trained, or is damaged. Export it again."


def _listed(paths: Sequence[str]) -> str:
    """How many modules it is, if several, and the first of them."""
    if len(paths) == 1:
        return ""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f" This is so in {len(paths)} modules: {', '.join(map(repr, paths[:_SHOWN]))}{more}."


def _norm(value: Tensor | None) -> float:
    return 0.0 if value is None else float(value.norm())
