"""``paring compress``: a smaller adapter out of a trained one, without its base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paring.cli.flags import option, simple
from paring.cli.run.options import DType, Layout
from paring.core.errors import SettingError

if TYPE_CHECKING:
    from paring.compress import Target
    from paring.core.adapter import Adapter


NAMES = ("rank", "energy", "budget")
"""The flags of which one says how small."""


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
    from paring.cli.run.output import check_exported, check_target
    from paring.cli.run.rewrite import rewrite
    from paring.compress import compress
    from paring.exchange.companions import companions

    calm_libraries()
    check_target(Path(options.output_dir), "export", overwrite=options.overwrite)
    check_exported(options.adapter)
    asked = [word for name in NAMES if (value := vars(options)[name]) is not None for word in (f"--{name}", str(value))]
    adapter = paring.read(options.adapter)
    smaller, losses = compress(adapter, target(options, adapter))
    rewrite(
        smaller,
        options.output_dir,
        layout=options.layout,
        export_dtype=options.export_dtype,
        overwrite=options.overwrite,
        extra_files=companions(options.adapter),
        command=["paring", "compress", options.adapter, options.output_dir, *asked],
    )
    worst = max(losses, key=lambda path: losses[path].relative)
    kept = 1 - sum(loss.error**2 for loss in losses.values()) / max(sum(loss.norm**2 for loss in losses.values()), 1e-300)
    empty = sum(loss.rank == 0 for loss in losses.values())
    say(f"{sum(loss.rank for loss in losses.values())} of {sum(loss.before for loss in losses.values())} ranks, {empty} modules empty")
    say(f"{smaller.parameters:,} of {adapter.parameters:,} parameters, {kept:.2%} of the squared norm of all updates")
    say(f"largest relative error of a module: {losses[worst].relative:.3f} ({worst})")
    print(options.output_dir)
    return 0


def target(options: Options, adapter: Adapter) -> Target:
    """What is asked for; bytes are those of the type that the adapter is written in.

    Raises:
        SettingError: not exactly one of the three, or none that can be.
    """
    from paring.cli.run.budgets import entry_bytes, written
    from paring.cli.run.settings import part_of
    from paring.compress import ToBudget, ToEnergy, ToRank
    from paring.parts.allocate.budget import Budget

    given = [f"--{name}" for name in NAMES if vars(options)[name] is not None]
    if len(given) != 1:
        raise SettingError(f"Give one of --rank, --energy and --budget{', not ' + ' and '.join(given) if given else ''}.")
    if options.rank is not None:
        return ToRank(rank=options.rank)
    if options.energy is not None:
        return ToEnergy(share=options.energy)
    assert options.budget is not None
    stored = max((tensor.element_size() for factors in adapter.modules.values() for tensor in (factors.a, factors.b)), default=4)
    size = written(options.budget, each=stored if options.export_dtype == "auto" else entry_bytes(options.export_dtype))
    return ToBudget(budget=Budget.decode(size or part_of("budget", options.budget, Budget)))


COMMAND = simple("compress", "make a smaller adapter out of a trained one", Options, run)
