"""``paring methods``: the table of methods, from the registry."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paring.cli.flags import option, simple

if TYPE_CHECKING:
    from paring.method import Method
    from paring.train.whole import Whole


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring methods``."""

    method: str | None = option("all about this one: its settings, what is proved, where the released code differs", default=None)
    json: bool = option("print JSON", default=False)


def run(options: Options) -> int:
    """Print every registered method, or one in full."""
    from rich.console import Console
    from rich.table import Table

    from paring.cli.run.settings import kind_of
    from paring.method import names
    from paring.train.whole import Whole

    if options.method is not None:
        return _one(kind_of(options.method), as_json=options.json)
    rows = [(name, kind_of(name).about) for name in (*names(), *Whole.members)]
    if options.json:
        keys = ("title", "kind", "paper", "parameters", "export")
        print(json.dumps([{"name": name, **{key: vars(about)[key] for key in keys}} for name, about in rows], indent=2))
        return 0
    table = Table("method", "title", "kind", "trainable parameters of a module", "export", "source")
    for name, about in rows:
        table.add_row(name, about.title, about.kind, about.parameters, about.export, about.paper)
    Console(highlight=False).print(table)
    return 0


def _one(method: type[Method] | type[Whole], *, as_json: bool) -> int:
    """Print all that is known of a method."""
    import inspect

    from paring.cli.words import unmarked

    about = method.about
    settings = {item.name: None if item.default is dataclasses.MISSING else repr(item.default) for item in dataclasses.fields(method)}
    if as_json:
        print(json.dumps({"name": method.name, **dataclasses.asdict(about), "settings": settings}, indent=2))
        return 0
    lines = [f"{method.name}: {about.title} ({about.kind}; {about.paper})", ""]
    lines += ["trainable parameters of a module: " + about.parameters, "export: " + about.export, ""]
    lines += [unmarked(inspect.getdoc(method) or "").split("\n\nRaises:")[0].replace("Attributes:", "Settings:"), ""]
    lines += ["Defaults: " + ", ".join(f"{name}={value}" for name, value in settings.items() if value is not None), ""]
    for title, items in (("Proved beyond the contract tests", about.verified), ("Where the released code differs", about.deviations)):
        if items:
            lines += [f"{title}:", *(f"- {item}" for item in items), ""]
    print("\n".join(lines).rstrip())
    return 0


COMMAND = simple("methods", "list the methods that `paring train --method` knows", Options, run)
