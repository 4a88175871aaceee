"""``paring methods``: the table of methods, from the registry."""

from __future__ import annotations

import json
from dataclasses import dataclass

from paring.cli.flags import option, simple


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring methods``."""

    json: bool = option("print JSON", default=False)


def run(options: Options) -> int:
    """Print every registered method."""
    from rich.console import Console
    from rich.table import Table

    from paring.method import load, names

    rows = [(name, load(name).about) for name in names()]
    if options.json:
        keys = ("title", "kind", "paper", "parameters", "exact_export")
        print(json.dumps([{"name": name, **{key: vars(about)[key] for key in keys}} for name, about in rows], indent=2))
        return 0
    table = Table("method", "title", "kind", "trainable parameters of a module", "source")
    for name, about in rows:
        table.add_row(name, about.title, about.kind, about.parameters, about.paper)
    Console(highlight=False).print(table)
    return 0


COMMAND = simple("methods", "list the methods that `paring train --method` knows", Options, run)
