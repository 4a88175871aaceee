"""``paring extract``: a LoRA out of a model that was trained in full."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paring.cli.flags import listed, option, simple
from paring.cli.run.options import DType, Layout
from paring.cli.run.sizes import Size, told

SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring extract``."""

    base: str = option("folder or hub id of the model before training", positional=True)
    tuned: str = option("folder or hub id of the model after it", positional=True)
    output_dir: str = option("folder to write; it must not exist, or hold an earlier export and --overwrite be given", positional=True)
    rank: int | None = option("at most so many ranks in every module", default=None)
    energy: float | None = option("in every module the fewest ranks that hold this share of its squared singular values", default=None)
    budget: str | None = option("a size for all modules together: 40k parameters, 30%, 2MB, or knee", default=None)
    modules_to_save: str | list[str] | None = option("ends of names of further modules to carry whole, such as LayerNorm", default=None)
    drop_rest: bool = option("leave out what has changed and has no place in a LoRA, instead of refusing it", default=False)
    layout: Layout = option("ragged ranks, or zero-padded to one rank for engines that need it", default="compact")
    export_dtype: DType = option("precision of the tensors; auto is float32", default="auto")
    overwrite: bool = option("replace an earlier export", default=False)


def run(options: Options) -> int:
    """Extract."""
    from paring.api import extract_lora
    from paring.attach.find import module_names
    from paring.cli.console import calm_libraries, say
    from paring.cli.run.budgets import entry_bytes
    from paring.cli.run.output import check_target
    from paring.cli.run.pair import load_pair
    from paring.cli.run.rewrite import rewrite
    from paring.exchange.companions import companions

    calm_libraries()
    check_target(Path(options.output_dir), "export", overwrite=options.overwrite)
    size = Size(rank=options.rank, energy=options.energy, budget=options.budget)
    target = size.target(entry_bytes(options.export_dtype))
    saved = listed(options.modules_to_save) or []
    pair = load_pair(options.base, options.tuned)
    found = extract_lora(
        pair.base,
        pair.tuned,
        target,
        task_type=pair.task_type,
        modules_to_save=saved,
        drop_rest=options.drop_rest,
        drawn=pair.drawn,
        base_model=pair.name,
    )
    more = [*(["--modules_to_save", ",".join(saved)] if saved else []), *(["--drop_rest"] if options.drop_rest else [])]
    rewrite(
        found.adapter,
        options.output_dir,
        layout=options.layout,
        export_dtype=options.export_dtype,
        overwrite=options.overwrite,
        module_names=module_names(pair.base),
        extra_files=companions(options.tuned),
        command=["paring", "extract", options.base, options.tuned, options.output_dir, *size.words(), *more],
    )
    whole = sum(factors.in_features * factors.out_features for factors in found.adapter.modules.values())
    for line in told(found.losses, found.adapter.parameters, whole):
        say(line)
    if found.dropped:
        worst = sorted(found.dropped, key=found.dropped.__getitem__, reverse=True)[:SHOWN]
        shown = ", ".join(f"{name} ({found.dropped[name]:.3f})" for name in worst)
        say(f"left out: the changes of {len(found.dropped)} tensors; the largest, relative to the tensor: {shown}")
    print(options.output_dir)
    return 0


COMMAND = simple("extract", "make a LoRA out of a fully trained model and its base", Options, run)
