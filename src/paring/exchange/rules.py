r"""How each engine reads a PEFT folder: which scale, which modules, what it refuses. One function an engine.

Every docstring names its source. "Read" means that the named file was read at the named version; "second-hand" that others
report it; "from memory" that neither is so. Engines change: a rule says what it says of that version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized

from paring.core.errors import AdapterError
from paring.core.heads import IMPLIED
from paring.exchange import settings
from paring.exchange.contents import Applied, Complaint, Contents, Verdict
from paring.exchange.expressions import Clock
from paring.exchange.layout import magnitude_keys

UNIFORM = "Read the adapter and write it again with layout='uniform', whose rank and scale are the same for all modules."
AGAIN = "The folder is not what was trained, or was changed since; export the trained model again."
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VLLM_DEFAULT_RANK = 16
# In SGLang: which projection must be there for another to be stacked.
_PARTNERS = {"q_proj": "v_proj", "k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


def peft(contents: Contents) -> Verdict:
    """PEFT's PeftModel: each module has its own rank and alpha, by the first matching pattern.

    Source: peft 0.21.2, tuners/lora/model.py (``_create_and_replace``), tuners/lora/layer.py (``update_layer``),
    utils/save_and_load.py (``set_peft_model_state_dict``), read.
    """
    task = str(contents.config.get("task_type"))
    missing = [] if contents.heads else list(IMPLIED.get(task, ()))
    complaints = []
    if missing:
        complaints.append(
            Complaint(
                level="warning",
                message=f"For task type {task} it expects the trained weights of {' or '.join(missing)}, and fails without them if "
                "the model has such a module. Train the head with the adapter (modules_to_save).",
            )
        )
    return _by_configuration(contents, complaints)


def transformers(contents: Contents) -> Verdict:
    """``model.load_adapter`` of transformers: PEFT's layers put in without a PeftModel, so no head is implied by the task.

    Source: transformers 5.23.0, integrations/peft.py (``load_adapter``), read.
    """
    return _by_configuration(contents, [])


def _by_configuration(contents: Contents, complaints: list[Complaint]) -> Verdict:
    config = contents.config
    try:
        settings.refuse(config)
    except AdapterError as error:
        complaints.append(Complaint(level="warning", message=f"The update is more than the factors that are compared here: {error}"))
    clock = Clock()
    scales, selection = settings.Scales(config, clock), settings.selection(config, clock)
    applied = {}
    torn: list[str] = []
    for module, rank in contents.ranks.items():
        if not selection.hits(module):
            applied[module] = Applied(
                scale=0.0,
                because="target_modules does not name it, so its tensors are ignored",
                cure="Name it in target_modules of adapter_config.json, or export the trained model again.",
            )
        elif scales.rank_of(module) != rank:
            torn.append(module)
        else:
            applied[module] = Applied(scale=scales.scale_of(module), because="alpha and rank of the first matching pattern")
    if torn:
        rank, expected = contents.ranks[torn[0]], scales.rank_of(torn[0])
        complaints.append(_refusal(f"{torn[0]!r} has rank {rank} in the file and {expected} in the configuration{_more(torn)}. {AGAIN}"))
    if settings.use_dora(config):
        without = [module for module in contents.ranks if contents.shapes.keys().isdisjoint(magnitude_keys(module))]
        if without:
            message = (
                f"use_dora is set, and {without[0]!r}{_more(without)} has no magnitudes in the file: it takes those of the adapted "
                f"weight as it loads, which is another update. {AGAIN}"
            )
            complaints.append(Complaint(level="warning", message=message))
    if contents.unread:
        message = (
            f"The tensor {contents.unread[0]!r}{_more(contents.unread)} is neither a factor nor in modules_to_save; it ignores it or fails."
        )
        complaints.append(Complaint(level="warning", message=message))
    return Verdict(applied=applied, complaints=tuple(complaints))


def vllm_0_31(contents: Contents) -> Verdict:
    """For vLLM up to 0.31: ranks from the tensors, but one scale for all, the global ``lora_alpha / r``.

    Source: vLLM wheels 0.30.0 and 0.31.0, lora/peft_helper.py, lora/lora_weights.py, read; the effect is also vllm#59799
    (second-hand). That a tensor above max_lora_rank does not fit its slot follows from the slots' shape.
    """
    complaints = [*_vllm_common(contents)]
    saved = settings.heads(contents.config)
    if saved in (["classifier"], ["score"]):
        message = f"0.31 loads the trained {saved[0]!r}; 0.30 and older refuse modules_to_save. Use 0.31 or newer."
        complaints.append(Complaint(level="warning", message=message))
    scales = settings.Scales(contents.config)
    complaints += _vllm_ranks(scales.rank)
    over = sorted(module for module, rank in contents.ranks.items() if rank > scales.rank)
    if over:
        cure = _even(contents, scales, over)
        complaints.append(
            _refusal(f"{over[0]!r} has rank {contents.ranks[over[0]]}, above the r {scales.rank} that slots are made for. {cure}")
        )
    return _global_scale(contents, complaints, rslora=True)


def vllm_0_32(contents: Contents) -> Verdict:
    """For vLLM from 0.32: patterns as in PEFT; the largest rank named anywhere must fit max_lora_rank.

    Source: vLLM wheels 0.32.0 and 0.33.0, lora/peft_helper.py, lora/lora_weights.py, read.
    """
    config = contents.config
    complaints = [*_vllm_common(contents)]
    start = config.get("init_lora_weights")
    moved = isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq"))
    refused = [key for key in ("lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora") if config.get(key)]
    complaints += [_refusal(f"{key} is set") for key in refused]
    complaints += [_refusal(f"init_lora_weights is {start!r}")] if moved else []
    scales = settings.Scales(config)
    complaints += _vllm_ranks(scales.largest_rank)
    applied = {
        module: Applied(scale=scales.scale_of(module), because="alpha and rank of the first matching pattern") for module in contents.ranks
    }
    return Verdict(applied=applied, complaints=tuple(complaints))


def _vllm_common(contents: Contents) -> Iterator[Complaint]:
    config = contents.config
    if config.get("use_dora"):
        yield _refusal("use_dora is set")
    if config.get("bias", "none") not in ("none", None):
        yield _refusal(f"bias is {config['bias']!r}")
    saved = settings.heads(config)
    if saved and saved not in (["classifier"], ["score"]):
        yield _refusal(f"modules_to_save is {saved}; only ['classifier'] or ['score'] is served")
    for key in contents.extra[:1]:
        yield _refusal(f"the tensor {key!r} is neither lora_A nor lora_B{_more(contents.extra)}")


def _vllm_ranks(rank: int) -> Iterator[Complaint]:
    if rank > VLLM_RANKS[-1]:
        yield _refusal(f"rank {rank} is above {VLLM_RANKS[-1]}, the largest max_lora_rank; compress the adapter to a lower rank")
    elif rank > VLLM_DEFAULT_RANK:
        enough = next(size for size in VLLM_RANKS if size >= rank)
        message = f"Rank {rank} is above the default max_lora_rank of {VLLM_DEFAULT_RANK}: start it with --max-lora-rank {enough}."
        yield Complaint(level="warning", message=message)


def sglang(contents: Contents) -> Verdict:
    """SGLang: one rank and one scale ``lora_alpha / r`` for all; q, k and v are stacked, so q needs v, and k only comes with both.

    Source: sglang 0.5.23, srt/lora/lora_config.py, lora.py, mem_pool.py, utils.py and lora_manager.py, read; the pattern validation of
    main of 2026 and its test, read in a stored copy. What has nothing to be stacked with stays under its own name, for which no
    buffer is found (``get_target_module_name``). Patterns that change a value are refused at load by main; 0.5.23 overlooks them and
    asserts each tensor's shape against ``r``. ``use_rslora`` is not read. Tensors outside of ``layers.<n>`` other than embeddings and
    lm_head are dropped.
    """
    complaints: list[Complaint] = []
    scales = settings.Scales(contents.config)
    alone: list[Complaint] = []
    dropped: dict[str, Applied] = {}
    for (before, name), found in contents.kinds.items():
        last = name.rpartition(".")[2]
        partner = _PARTNERS.get(last)
        if partner is None:
            continue
        beside = contents.kinds.get((before, name.removesuffix(last) + partner), {})
        single = [found[layer] for layer in sorted(found.keys() - beside.keys())]
        cure = _filled(contents, [module.removesuffix(last) + partner for module in single])
        if single:
            alone.append(_refusal(f"{single[0]!r}{_more(single)} has no {partner} beside it to be stacked with. {cure}"))
    outside = Applied(
        scale=0.0,
        because="it lies outside of layers.<n>",
        cure="It serves only modules in layers.<n>, whatever the layout: add the adapter into its base model (paring fuse), or use another "
        "engine.",
    )
    dropped |= {
        module: outside for module in contents.ranks if ".layers." not in f".{module}" and not module.endswith(("embed_tokens", "lm_head"))
    }
    if contents.config.get("use_dora"):
        complaints.append(_refusal("use_dora is set"))
    patterned = scales.patterned
    if patterned:
        # Where the uniform layout would be loaded and modules dropped, it does not help.
        cure = next((applied.cure for applied in dropped.values() if applied.cure != UNIFORM), UNIFORM)
        complaints.append(_refusal(f"rank_pattern or alpha_pattern changes {len(patterned)} modules ({patterned[0]!r}...). {cure}"))
    other = sorted(module for module, rank in contents.ranks.items() if rank != scales.rank)
    if other and not patterned:
        complaints.append(_refusal(f"{other[0]!r} has rank {contents.ranks[other[0]]}, but buffers are of rank {scales.rank}. {AGAIN}"))
    complaints += alone
    strange = [key for key in contents.extra if ".layers." in key]
    if strange:
        complaints.append(_refusal(f"the tensor {strange[0]!r}{_more(strange)} is neither lora_A nor lora_B"))
    complaints += _no_heads(contents)
    return _global_scale(contents, complaints, rslora=False, dropped=dropped)


def llama_cpp(contents: Contents) -> Verdict:
    """llama.cpp: the global ``lora_alpha`` over each tensor's own rank.

    Source: llama.cpp of 2026, src/llama-adapter.h (``get_scale``) and convert_lora_to_gguf.py, read in a stored copy. Neither
    ``use_rslora`` nor a pattern is read; the converter stops at any tensor that is not lora_A, lora_B or a norm.
    """
    scales = settings.Scales(contents.config)
    complaints = []
    strange = [name for name in (*contents.heads, *contents.extra) if "_layernorm" not in name and ".norm" not in name]
    if strange:
        complaints.append(_refusal(f"the converter stops at {strange[0]!r}{_more(strange)}: merge such an adapter instead"))
    if any(module.rpartition(".")[2] == "lm_head" for module in contents.ranks):
        message = "The converter refuses an adapted lm_head if the model ties it to its embeddings."
        complaints.append(Complaint(level="warning", message=message))
    applied = {
        module: Applied(scale=scales.alpha / rank, because=f"lora_alpha {scales.alpha:g} over the tensor's own rank {rank}")
        for module, rank in contents.ranks.items()
    }
    return Verdict(applied=applied, complaints=tuple(complaints))


def lorax(contents: Contents) -> Verdict:
    """LoRAX: one scale for all, and the layers of a kind of projection are stacked.

    Ranks must be equal within a kind, and if one layer lacks it the kind is dropped in every layer. Layers are taken to run
    from 0 to the highest that training targeted. Only ``r``, ``lora_alpha`` and ``use_rslora`` are read.

    Where its SGMV kernels are installed, ranks are padded to 8 or a multiple of 16, and the padded rank is written back into
    the configuration that later kinds take their scale from: only such ranks keep the scale.

    S-LoRA, which it grew from, is stricter: ``lora_alpha / r`` without rsLoRA, and q, k, v and o in every layer or an error.

    Source: lorax a7394ba (May 2026), server/lorax_server/adapters/lora.py, utils/punica.py, models/model.py, read; S-LoRA
    c1ddf48, slora/models/peft/lora_adapter.py and layer_weights/lora_layer_weight.py, read.
    """
    complaints: list[Complaint] = []
    scales = settings.Scales(contents.config)
    dropped: dict[str, Applied] = {}
    for (before, name), found in contents.kinds.items():
        ranks = {contents.ranks[path] for path in found.values()}
        # One after another: the last layer is a number out of a name, and may be any.
        first = next((layer for layer in range(contents.last_layer + 1) if layer not in found), None)
        absent = (layer for layer in range(first or 0, contents.last_layer + 1) if layer not in found)
        cure = _filled(contents, (".".join(filter(None, (before, str(layer), name))) for layer in absent))
        if len(ranks) > 1:
            even = _even(contents, scales, found.values())
            # Ranks that are even are stacked only if no layer is missing.
            message = f"{before}.*.{name} has ranks {sorted(ranks)}, which cannot be stacked. {cure if even == UNIFORM else even}"
            complaints.append(_refusal(message))
        if first is not None:
            because = f"layer {first} has no {name}, so {name} is dropped in every layer"
            dropped |= dict.fromkeys(found.values(), Applied(scale=0.0, because=because, cure=cure))
    padded = 8 if scales.rank <= 8 else -(-scales.rank // 16) * 16
    if padded != scales.rank and len({name for _, name in contents.kinds}) > 1:
        message = (
            f"With its SGMV kernels it pads rank {scales.rank} to {padded} and then divides alpha by {padded} in all kinds but the first: "
            f"{scales.rank / padded:.3g} times the trained update. "
            f"Export with layout='uniform' and pad_to={padded} (--pad_to), or set DISABLE_SGMV=1."
        )
        complaints.append(Complaint(level="warning", message=message))
    if settings.use_dora(contents.config):
        complaints.append(_refusal("it reads no magnitudes (use_dora), and the factors alone are another update"))
    complaints += _no_heads(contents)
    return _global_scale(contents, complaints, rslora=True, dropped=dropped)


def _global_scale(
    contents: Contents, complaints: list[Complaint], *, rslora: bool, dropped: Mapping[str, Applied] | None = None
) -> Verdict:
    scales = settings.Scales(contents.config)
    value = settings.scale(scales.alpha, scales.rank, scales.rslora and rslora)
    root = "sqrt(r)" if scales.rslora and rslora else "r"
    because = f"one scale for all, lora_alpha {scales.alpha:g} / {root}, r = {scales.rank}"
    applied = {module: Applied(scale=value, because=because) for module in contents.ranks} | dict(dropped or {})
    return Verdict(applied=applied, complaints=tuple(complaints))


def _even(contents: Contents, scales: settings.Scales, modules: Iterable[str]) -> str:
    """What helps against ranks that differ: the uniform layout, if the folder can be read at all."""
    return UNIFORM if all(scales.rank_of(module) == contents.ranks[module] for module in modules) else AGAIN


def _filled(contents: Contents, missing: Iterable[str]) -> str:
    """What helps against missing modules: the uniform layout writes those that died in training, and no layout any other."""
    never = next((module for module in missing if module not in contents.dead), None)
    if never is None:
        return UNIFORM
    return (
        f"The adapter knows nothing of {never!r}, so no layout can write it: train it as well (target_modules), add the adapter into "
        "its base model (paring fuse), or use another engine."
    )


def _more(names: Sized) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _refusal(what: str) -> Complaint:
    return Complaint(level="error", message=f"It would refuse the adapter: {what}{'' if what.endswith('.') else '.'}")


def _no_heads(contents: Contents) -> Iterator[Complaint]:
    if contents.heads:
        message = f"It does not load fully trained modules ({contents.heads[0]!r}...): serve them from the base model."
        yield Complaint(level="warning", message=message)
