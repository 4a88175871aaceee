"""What mkdocs calls while it builds the site (see `hooks` in mkdocs.yml).

- The methods' pages and the reference join the navigation by themselves: a new file needs no edit here or there.
- The studies' own pages lie beside those that tell of them.
- Formulas become MathML, which browsers draw on their own; so the site needs no script for them.
- A page that would ask another host for anything stops the build.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from tools import studies
from tools.floors import ORDER

_FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)
_REQUEST = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//|<link\b(?![^>]*canonical)[^>]*\bhref=\"(?:https?:)?//")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the sections Methods and Reference of the navigation."""
    docs = Path(config.docs_dir)
    found = {
        "Methods": sorted(f"methods/{path.name}" for path in (docs / "methods").glob("*.md") if path.stem != "index"),
        "Reference": list(_reference(_package(config))),
    }
    for entry in config.nav or []:
        for title, pages in found.items():
            if isinstance(entry, dict) and title in entry:
                entry[title] = [*entry[title], *pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference, which exist nowhere but in the site, and those of studies."""
    for uri, text in (*_reference(_package(config)).items(), *studies.pages().items()):
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_content(html: str, **kwargs: Any) -> str:
    """Turn formulas into MathML."""
    return _FORMULA.sub(_mathml, html)


def on_post_page(output: str, page: Any, **kwargs: Any) -> str:
    """Refuse a page that would load something from another host.

    Raises:
        PluginError: names the page and what it would load.
    """
    request = _REQUEST.search(output)
    if request is not None:
        raise PluginError(f"{page.file.src_uri} would load something from another host: {request[0]}...")
    return output


def _mathml(match: re.Match[str]) -> str:
    return str(convert(html.unescape(match["tex"]), display="inline" if match["open"] == "(" else "block"))


def _package(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent / "src" / "paring"


def _reference(package: Path) -> dict[str, str]:
    """A page for each folder of the package and for each module that stands alone, lowest floor first."""
    pages = {}
    stems = [path.stem for path in sorted(package.iterdir()) if path.suffix == ".py" or (path / "__init__.py").exists()]
    for stem in sorted((stem for stem in stems if not stem.startswith("_")), key=lambda stem: (*ORDER, stem).index(stem)):
        folder = package / stem
        modules = (
            sorted(".".join(path.relative_to(package).with_suffix("").parts) for path in folder.rglob("[!_]*.py"))
            if folder.is_dir()
            else []
        )
        lines = [f"# paring.{stem}", "", f"::: paring.{stem}", "    options:", "      show_root_heading: false"]
        if modules:
            lines += ["      members: false"]
        for module in modules:
            lines += ["", f"::: paring.{module}"]
        pages[f"reference/{stem}.md"] = "\n".join(lines) + "\n"
    return pages
