"""``paring fuse``: the base model with the adapter added in for good."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paring.cli.flags import option, simple
from paring.cli.run.options import DType


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring fuse``."""

    adapter: str = option("folder or hub id of the exported adapter", positional=True)
    output_dir: str = option("folder to write; it must not exist, or hold an earlier fusion and --overwrite be given", positional=True)
    model_name_or_path: str | None = option("the base model, if not the one that the adapter names", default=None)
    dtype: DType = option("precision of the fused weights", default="auto")
    overwrite: bool = option("replace an earlier fusion", default=False)


def run(options: Options) -> int:
    """Fuse."""
    import paring.api
    from paring.cli.console import calm_libraries
    from paring.cli.run.loaded import load_trained
    from paring.cli.run.models import fill
    from paring.cli.run.output import check_target
    from paring.exchange.folder import replacing

    calm_libraries()
    folder = Path(options.output_dir)
    check_target(folder, "fusion", overwrite=options.overwrite)
    # The folder is checked before the model is loaded, and appears whole or not at all.
    with replacing(folder, overwrite=options.overwrite) as fresh:
        trained = load_trained(options.adapter, base=options.model_name_or_path, dtype=options.dtype, device="cpu")
        fused = paring.api.fuse(trained.model, trained.adapter)
        assert fused is trained.model
        fill(fresh, trained.model, trained.tokenizer, {"fused": options.adapter})
    print(options.output_dir)
    return 0


COMMAND = simple("fuse", "add an adapter into its base model and save the result", Options, run)
