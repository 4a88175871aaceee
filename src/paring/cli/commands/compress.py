"""``paring compress``: a smaller adapter out of a trained one, without its base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paring.cli.flags import option, simple
from paring.cli.run.options import DType, Layout
from paring.cli.run.sizes import Size, told


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring compress``."""

    adapter: str = option("folder or hub id of a LoRA, of paring's or not", positional=True)
    output_dir: str = option("folder to write; it must not exist, or hold an earlier export and --overwrite be given", positional=True)
    rank: int | None = option("at most so many ranks in every module", default=None)
    energy: float | None = option("in every module the fewest ranks that hold this share of its squared singular values", default=None)
    budget: str | None = option("a size for all modules together: 40k parameters, 30%, 2MB, or knee", default=None)
    layout: Layout = option("ragged ranks, or zero-padded to one rank for engines that need it", default="compact")
    export_dtype: DType = option("precision of the tensors; auto keeps the adapter's", default="auto")
    overwrite: bool = option("replace an earlier export", default=False)


def run(options: Options) -> int:
    """Compress."""
    import paring
    from paring.cli.console import calm_libraries, say
    from paring.cli.run.budgets import entry_bytes
    from paring.cli.run.output import check_exported, check_target
    from paring.cli.run.rewrite import rewrite
    from paring.compress import compress
    from paring.exchange.companions import companions

    calm_libraries()
    check_target(Path(options.output_dir), "export", overwrite=options.overwrite)
    check_exported(options.adapter)
    adapter = paring.read(options.adapter)
    stored = max((tensor.element_size() for factors in adapter.modules.values() for tensor in (factors.a, factors.b)), default=4)
    size = Size(rank=options.rank, energy=options.energy, budget=options.budget)
    each = stored if options.export_dtype == "auto" else entry_bytes(options.export_dtype)
    smaller, losses = compress(adapter, size.target(each))
    rewrite(
        smaller,
        options.output_dir,
        layout=options.layout,
        export_dtype=options.export_dtype,
        overwrite=options.overwrite,
        extra_files=companions(options.adapter),
        command=["paring", "compress", options.adapter, options.output_dir, *size.words()],
    )
    for line in told(losses, smaller.parameters, adapter.parameters):
        say(line)
    print(options.output_dir)
    return 0


COMMAND = simple("compress", "make a smaller adapter out of a trained one", Options, run)
