"""``paring verify``: what each inference engine would make of an exported adapter."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paring.cli.flags import listed, option, simple

if TYPE_CHECKING:
    from paring.exchange.engines import Finding

PROMISED = ("peft", "transformers")
TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring verify``."""

    folder: str = option("folder of an adapter in PEFT's layout", positional=True)
    engines: str | list[str] | None = option("engines that must be right for status 0; by default peft,transformers", default=None)
    full: bool = option("also load it in a fresh environment without paring and compare outputs", default=False)
    model_name_or_path: str | None = option("the base model for --full, if not the one that the adapter names", default=None)
    json: bool = option("print JSON", default=False)


def run(options: Options) -> int:
    """Lint, and with ``--full`` reload."""
    import paring
    from paring.cli.run.output import check_exported
    from paring.core.coding import choice
    from paring.exchange.engines import BY_NAME

    chosen = tuple(listed(options.engines) or PROMISED)
    for name in chosen:
        choice("engines", name, tuple(BY_NAME))
    check_exported(options.folder)
    findings = paring.verify(options.folder)
    wrong = any(item.level == "error" and item.engine in chosen for item in findings)
    distance = _reload(options) if options.full else None
    if options.json:
        print(json.dumps({"findings": [asdict(item) for item in findings], "difference": distance}, indent=2))
    else:
        _show(findings, chosen)
        if distance is not None:
            verdict = "equal" if distance <= TOLERANCE else "NOT EQUAL"
            print(f"outputs in a fresh process without paring: {verdict}, largest difference {distance:.1e} (allowed {TOLERANCE:.0e})")
    return 1 if wrong or (distance is not None and not distance <= TOLERANCE) else 0


def _show(findings: list[Finding], chosen: tuple[str, ...]) -> None:
    """One line a finding; on a terminal it goes on below itself, between words."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    colors = {"ok": "green", "warning": "yellow", "error": "red"}
    names = {item.engine: f"{item.engine} *" if item.engine in chosen else item.engine for item in findings}
    wide = max(map(len, names.values()), default=0)
    indent = wide + 2 + max(map(len, colors)) + 2
    for group in grouped(findings):
        item = group[0]
        text = worded(group)
        if console.is_terminal:
            text = textwrap.fill(text, max(40, console.width - indent), break_long_words=False, break_on_hyphens=False)
        level = Text(item.level.ljust(indent - wide - 2), style=colors[item.level])
        console.print(Text.assemble(names[item.engine].ljust(wide + 2), level, text.replace("\n", "\n" + " " * indent)))
    console.print(f"* decides the status ({', '.join(chosen)}); --engines chooses others", markup=False)


# What may differ between sentences that say the same of several modules: names in quotes or with dots, projections, numbers.
_DETAILS = re.compile(r"'[^']*'|[\w*]+(?:\.[\w*]+)+|\b\w+_proj\b|-?\d[\d.e+-]*")


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings in their order, those of an engine together that say the same but for the module and its numbers."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for item in findings:
        shape = re.sub(r"#(?:, #)+", "#", _DETAILS.sub("#", item.message))
        groups.setdefault((item.engine, item.level, shape), []).append(item)
    return list(groups.values())


def worded(group: Sequence[Finding]) -> str:
    """One sentence for a group: that of its first finding, and how many are like it."""
    first, more = group[0], len(group) - 1
    if first.module is not None:
        return f"{first.module}{f' and {more} more like it' if more else ''}: {first.message}"
    return f"{first.message} (And {more} more like it; --json has all.)" if more else first.message


def _reload(options: Options) -> float:
    """The largest difference between our reading of the adapter, added into its base, and stock PEFT's in another process."""
    import torch

    import paring.api
    from paring.cli.console import calm_libraries
    from paring.cli.run.elsewhere import loaded_elsewhere
    from paring.cli.run.loaded import load_trained

    calm_libraries()
    trained = load_trained(options.folder, base=options.model_name_or_path, dtype="float32", device="cpu")
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(trained.model.config.vocab_size)
    inputs = torch.randint(vocabulary, (4, 12), generator=generator)
    # A row must not end in padding: some heads read the last token that is none.
    inputs[inputs == trained.tokenizer.pad_token_id] = (trained.tokenizer.pad_token_id or 0) ^ 1
    job = {
        "base": options.model_name_or_path or trained.adapter.metadata.base_model,
        "adapter": str(Path(options.folder)),
        "task_type": trained.adapter.metadata.task_type,
        "labels": None if trained.kind == "causal-lm" else trained.model.config.num_labels,
        "pad": trained.tokenizer.pad_token_id,
        "inputs": {"input_ids": inputs.tolist()},
    }
    there = loaded_elsewhere(job)["logits"]
    paring.api.fuse(trained.model, trained.adapter)
    with torch.inference_mode():
        here = trained.model(input_ids=inputs).logits.float()
    return float((here - there).abs().max())


COMMAND = simple("verify", "say what each inference engine would make of an adapter", Options, run)
