"""Write what is derived from the code: the README's table of methods, `docs/methods/*.md` and `docs/reference/index.md`.

python tools/generate.py            rewrite what is stale
python tools/generate.py --check    change nothing; exit 1 and say what is stale
python tools/generate.py --root X   the same for another folder that holds README.md and docs/
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import griffe

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

from paring import method  # noqa: E402
from paring.cli.run.settings import kind_of  # noqa: E402
from paring.core.coding import Coded  # noqa: E402
from paring.train.whole import Whole  # noqa: E402
from tests.methods.properties import PROPERTIES  # noqa: E402
from tools.docstrings import to_markdown  # noqa: E402

BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
NOTE = "<!-- Written by `make generate`; change the docstrings in src/paring, not this file. -->\n\n"


def own_methods() -> list[type[method.Method] | type[Whole]]:
    """The classes of all methods under `paring/methods`, not those of other installed packages, and of those without an adapter."""
    names = [name for name in method.names() if find_spec(f"paring.methods.{name}") is not None]
    return [kind_of(name) for name in (*names, *Whole.members)]


@functools.cache
def table(pages: str) -> str:
    """One row for each method.

    Args:
        pages: the folder of the methods' pages, as a link prefix.
    """
    lines = ["| method | what it is | source | trained parameters of a module | export |", "| --- | --- | --- | --- | --- |"]
    for cls in own_methods():
        about = cls.about
        cells = (
            f"[{cls.__name__}]({pages}{cls.name}.md)",
            f"{about.title} ({about.kind})",
            about.paper,
            about.parameters,
            about.export,
        )
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def proved() -> str:
    """One row for each property, with the test that proves it."""
    lines = ["| method | property | test |", "| --- | --- | --- |"]
    for cls in own_methods():
        for name, said in PROPERTIES.get(cls.name, {}).items():
            lines.append("| " + " | ".join(map(cell, (f"[{cls.__name__}]({cls.name}.md)", said, f"`test_{name}`"))) + " |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text for one cell of a Markdown table: on one line, its bars escaped, by another name within formulas."""
    pieces = re.split(r"(\\\(.*?\\\)|`[^`]*`)", " ".join(text.split()))
    return "".join(
        piece.replace("|", r"\vert ") if piece.startswith(r"\(") else piece if piece.startswith("`") else piece.replace("|", r"\|")
        for piece in pieces
    )


def in_a_sentence(title: str) -> str:
    """A title behind a colon: a first word that is a name, as LoRA is, keeps its capital."""
    return title[:1].lower() + title[1:] if title.split(maxsplit=1)[0][1:].islower() else title


@functools.cache
def page(cls: type[method.Method] | type[Whole]) -> str:
    """A method's page: its module's docstring, its facts and its settings."""
    about, module = cls.about, cls.__module__
    parts = [
        NOTE + f"# {cls.__name__}: {in_a_sentence(about.title)}",
        to_markdown(inspect.getdoc(sys.modules[module]) or ""),
        "\n".join(
            [
                f"| name | `{cls.name}` |",
                "| --- | --- |",
                f"| class | [`{module}.{cls.__name__}`][{module}.{cls.__name__}] |",
                f"| family | {cell(about.kind)} |",
                f"| source | {cell(about.paper)} |",
                f"| trained parameters of a module | {cell(about.parameters)} |",
                f"| export | {about.export} |",
            ]
        ),
    ]
    if about.recipe:
        parts.append(f"## Use\n\n```python\n{about.recipe}\n```")
    parts.append(f"## Settings\n\n{settings(cls)}")
    if about.deviations:
        parts.append("## Where the released code differs\n\n" + bullets(about.deviations))
    if about.verified:
        proofs = {said: f" (`test_{name}`)" for name, said in PROPERTIES.get(cls.name, {}).items()}
        lines = tuple(said + proofs.get(said, "") for said in about.verified)
        folder = "train" if issubclass(cls, Whole) else "methods"
        where = f"Each is a test in `tests/{folder}/test_{cls.name}.py`.\n\n" if proofs else ""
        parts.append(f"## Proved beyond the contract tests\n\n{where}" + bullets(lines))
    return "\n\n".join(parts) + "\n"


def bullets(items: tuple[str, ...]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {to_markdown(item)}" for item in items)


def settings(cls: type[Coded]) -> str:
    """A table of a dataclass's fields with what its docstring says of each."""
    told = attributes(inspect.getdoc(cls) or "")
    hints = typing.get_type_hints(cls)
    lines = ["| setting | values | default | meaning |", "| --- | --- | --- | --- |"]
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        values = (f"`{item.name}`", spelled(hints[item.name]), default(item), told.get(item.name, ""))
        lines.append("| " + " | ".join(map(cell, values)) + " |")
    return "\n".join(lines)


def attributes(docstring: str) -> dict[str, str]:
    """What a Google-style docstring says of each attribute, in Markdown."""
    sections = griffe.Docstring(to_markdown(docstring)).parse("google", warnings=False)
    found = [item for section in sections if section.kind is griffe.DocstringSectionKind.attributes for item in section.value]
    return {name.strip(): item.description for item in found for name in item.name.split(",")}


def spelled(hint: object) -> str:
    """A type as a reader would name it: `Literal["a", "b"]` by its values, a union by its members."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f'`"{value}"`' if isinstance(value, str) else f"`{value}`" for value in typing.get_args(hint))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(spelled(member) for member in typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Coded):
        return " or ".join(sorted(f"`{member.__name__}`" for member in hint.members.values() if member.__module__.startswith("paring.")))
    if hint is types.NoneType:
        return "`None`"
    return f"`{hint.__name__ if isinstance(hint, type) else hint}`"


def default(item: dataclasses.Field[object]) -> str:
    """A field's default, or that there is none."""
    if item.default is not dataclasses.MISSING:
        return f"`{item.default!r}`".replace("'", '"')
    if item.default_factory is not dataclasses.MISSING:
        return f"`{item.default_factory()!r}`".replace("'", '"')
    return "required"


@functools.cache
def surface() -> str:
    """The page of the names that `paring` itself offers, each with the first sentence of its docstring."""
    package = griffe.load("paring", search_paths=[str(HERE / "src")], resolve_aliases=True)
    lines = [
        NOTE + "# Reference",
        "",
        "What `import paring` offers. It loads neither torch nor peft; a name is loaded when it is first used.",
        "",
        "| name | what it is |",
        "| --- | --- |",
    ]
    for name in sorted(str(item) for item in package.exports or []):
        member = package[name]
        if not member.is_alias:
            continue
        text = to_markdown(member.docstring.value) if member.docstring else ""
        lines.append(f"| [`paring.{name}`][{member.final_target.path}] | {cell(text.split(chr(10) * 2)[0])} |")
    return "\n".join(
        [*lines, "", "The pages beside this one hold every public name of the package, folder by folder, lowest floor first.", ""]
    )


def readme(text: str) -> str:
    """The README with a fresh table between its two markers.

    Raises:
        ValueError: a marker is missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md needs the two lines {BEGIN} and {END}; the table of methods goes between them.")
    head, rest = text.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{table('docs/methods/')}{END}{rest.split(END, 1)[1]}"


def wanted(root: Path) -> Mapping[Path, str]:
    """Every derived file with the text that it should hold."""
    pages = {root / "docs/methods" / f"{cls.name}.md": page(cls) for cls in own_methods()}
    index = (
        NOTE + "# Methods\n\nOne published method is one file under `paring/methods`. Every one passes the same contract tests. The last, "
        "LISA, trains the model's own weights, without an adapter.\n\n"
        + table("")
        + "\n## Proved properties\n\nWhat makes each method this one and no other; a property without its test fails the suite. "
        "Those of LoRA, SoRA and the spectral cut are on their pages.\n\n" + proved()
    )
    return {
        root / "README.md": readme((root / "README.md").read_text(encoding="utf-8")),
        root / "docs/methods/index.md": index,
        root / "docs/reference/index.md": surface(),
        **pages,
    }


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write what is derived from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if anything is stale")
    parser.add_argument("--root", type=Path, default=HERE, help="folder that holds README.md and docs/")
    options = parser.parse_args(argv)
    files = wanted(options.root)
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    orphans = sorted(set((options.root / "docs/methods").glob("*.md")) - set(files))
    for path in (*stale, *orphans):
        print(f"{'stale' if options.check else 'removed' if path in orphans else 'written'}: {path.relative_to(options.root)}")
    if options.check:
        if stale or orphans:
            print("Run `make generate` and commit what it writes.")
        return int(bool(stale or orphans))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    for path in orphans:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
