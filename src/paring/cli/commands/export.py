"""``paring export``: a training checkpoint as a plain LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paring.cli.flags import option, simple
from paring.cli.run.options import DType, Layout


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring export``."""

    checkpoint: str = option("a checkpoint-* folder that `paring train` left", positional=True)
    output_dir: str = option("folder to write; it must not exist, or hold an earlier export and --overwrite be given", positional=True)
    layout: Layout = option("ragged ranks, or zero-padded to one rank for engines that need it", default="compact")
    rank: int | None = option("of an adapter with nested ranks (dylora), the rank to export", default=None)
    pad_to: int | None = option("with --layout uniform, the rank to pad to; `paring verify` says which engine wants one", default=None)
    export_dtype: DType = option("precision of the tensors; auto keeps the training's", default="auto")
    model_name_or_path: str | None = option("the base model, if it has moved", default=None)
    trust_remote_code: bool = option("run model code that comes with the base's weights", default=False)
    overwrite: bool = option("replace an earlier export", default=False)
    force: bool = option("export although the proximal step never ran", default=False)


def run(options: Options) -> int:
    """Export."""
    import torch

    import paring
    from paring.cli.console import calm_libraries, say
    from paring.cli.run.base import DTYPES
    from paring.cli.run.loaded import load_checkpoint
    from paring.cli.run.output import check_target

    calm_libraries()
    check_target(Path(options.output_dir), "export", overwrite=options.overwrite)
    model, base = load_checkpoint(Path(options.checkpoint), options.model_name_or_path, trust_remote_code=options.trust_remote_code)
    if options.rank is not None:
        paring.set_rank(model, options.rank)
    dtype = DTYPES[options.export_dtype]
    folder = paring.export(
        model,
        options.output_dir,
        layout=options.layout,
        pad_to=options.pad_to,
        dtype=dtype if isinstance(dtype, torch.dtype) else None,
        overwrite=options.overwrite,
        force=options.force,
        tokenizer=base.tokenizer,
    )
    live = paring.snapshot(model)
    if live.entries:
        say(f"{sum(one.parameters for one in live.entries.values()):,} sparse entries in {len(live.entries)} modules")
    else:
        say(f"{sum(live.ranks.values())} ranks in {sum(rank > 0 for rank in live.ranks.values())} of {len(live.ranks)} modules")
    print(folder)
    return 0


COMMAND = simple("export", "write a training checkpoint as a plain LoRA", Options, run)
