"""Pages in a real Chromium: they render, ask for nothing, fit a phone, follow the colour scheme, and have names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from paring.report import render
from paring.study.page import render_study
from tests.report.samples import LLAMA, comparison, modules, page, run
from tests.study import samples as studies

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pages are not looked at in a browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: pages are not looked at in a browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of many kinds."""
    path = tmp_path_factory.mktemp("pages")
    wide = tuple(modules("model.layers", range(32), LLAMA[:2], rank=64, live=lambda layer, kind: (layer + kind) % 65))
    (path / "usual.html").write_text(page("usual"), "utf-8")
    (path / "wide.html").write_text(render(run(modules=wide, history=(), title="a_title_without_a_single_blank_" * 4)), "utf-8")
    (path / "many.html").write_text(comparison(), "utf-8")
    (path / "study.html").write_text(render_study(studies.usual()), "utf-8")
    (path / "study many.html").write_text(render_study(studies.many()), "utf-8")
    (path / "study evil.html").write_text(render_study(studies.evil()), "utf-8")
    for name in ("evil", "nothing", "all NaN"):
        (path / f"{name}.html").write_text(page(name), "utf-8")
    return path


PAGES = ["usual", "wide", "many", "evil", "nothing", "all NaN", "study", "study many", "study evil"]


def _open(browser: Any, file: Path, *, width: int = 1200, scheme: str = "light") -> tuple[Any, list[str], list[str]]:
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(file.as_uri())
    return tab, said, asked


@pytest.mark.parametrize("name", PAGES)
def test_a_page_renders_fits_and_asks_for_nothing(browser: Any, folder: Path, name: str) -> None:
    file = folder / f"{name}.html"
    tab, said, asked = _open(browser, file)
    tab.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    for width in (1200, 360):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("h1").bounding_box()["width"] <= width
    tab.screenshot()
    assert said == []
    assert asked == [file.as_uri()]
    tab.close()


def test_figures_are_drawn_and_have_names_and_descriptions(browser: Any, folder: Path) -> None:
    tab, _, _ = _open(browser, folder / "usual.html")
    figures = tab.get_by_role("img").all()
    names = [figure.evaluate("it => document.getElementById(it.getAttribute('aria-labelledby')).textContent") for figure in figures]
    assert names[:4] == ["Live ranks by layer and kind of module: SoRA on tweets", "Live adapter parameters", "Penalty weight λ", "Loss"]
    for figure, name in zip(figures, names, strict=True):
        assert tab.get_by_role("img", name=name, exact=True).count() == 1
        assert len(figure.evaluate("it => document.getElementById(it.getAttribute('aria-describedby')).textContent")) > 20
        box = figure.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
    tab.close()


def test_text_of_a_run_never_runs(browser: Any, folder: Path) -> None:
    tab, said, _ = _open(browser, folder / "evil.html")
    assert tab.locator("script").count() == 0
    assert tab.locator("h1").inner_text().startswith("<script>alert(1)</script>")
    # Even if markup got through, the page's own policy stops it.
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"alert(2)\">')")
    tab.wait_for_timeout(100)
    assert [text for text in said if "alert" in text and "Content Security Policy" not in text] == []
    tab.close()


def test_the_keyboard_reaches_the_skip_link_then_the_regions_that_scroll(browser: Any, folder: Path) -> None:
    tab, _, _ = _open(browser, folder / "wide.html", width=360)
    tab.keyboard.press("Tab")
    focused = tab.evaluate("[document.activeElement.textContent, document.activeElement.getBoundingClientRect().top >= 0]")
    assert focused == ["Skip to the content", True]
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Heat map of live ranks")
    tab.keyboard.press("ArrowRight")
    # Asked from here: the page's own policy forbids the waiting function to evaluate a string.
    for _ in range(100):
        if tab.evaluate("document.activeElement.scrollLeft > 0"):
            break
        tab.wait_for_timeout(50)
    assert tab.evaluate("document.activeElement.scrollLeft > 0")
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    tab.close()


def test_every_region_that_scrolls_can_be_focused_and_has_a_name(browser: Any, folder: Path) -> None:
    tab, _, _ = _open(browser, folder / "wide.html", width=360)
    unnamed = tab.evaluate(
        """[...document.querySelectorAll('*')].filter(it => it.scrollWidth > it.clientWidth + 1 && it !== document.documentElement
             && ['auto', 'scroll'].includes(getComputedStyle(it).overflowX))
           .filter(it => it.tabIndex !== 0 || it.getAttribute('role') !== 'region'
             || !(it.getAttribute('aria-label') || it.getAttribute('aria-labelledby'))).length"""
    )
    assert unnamed == 0
    tab.close()


def test_landmarks_and_headings_are_in_order(browser: Any, folder: Path) -> None:
    for name in ("usual", "many", "study"):
        tab, _, _ = _open(browser, folder / f"{name}.html")
        for role in ("banner", "navigation", "main", "contentinfo"):
            assert tab.get_by_role(role).count() == 1, role
        levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(it => Number(it.tagName[1]))")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        tab.close()


def test_dark_changes_the_page_and_the_figures(browser: Any, folder: Path) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        tab, _, _ = _open(browser, folder / "usual.html", scheme=scheme)
        colours[scheme] = tab.evaluate(
            """() => {
              const heat = document.querySelector('#ranks svg[role=img]');
              const cell = [...heat.querySelectorAll('path')].find(it => it.getAttribute('style').includes('--heat-8'));
              const curve = [...document.querySelectorAll('#curves path')].find(it => it.getAttribute('style').includes('--series-1'));
              return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
                      getComputedStyle(cell).fill, getComputedStyle(curve).stroke];
            }"""
        )
        tab.close()
    assert all(light != dark for light, dark in zip(colours["light"], colours["dark"], strict=True))
    assert colours["light"][0] == "rgb(251, 251, 249)"
    assert colours["dark"][0] == "rgb(18, 22, 20)"
    assert "none" not in colours["light"] + colours["dark"]
