"""What stands on a page, whatever the run was like."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from paring.core.errors import DataError
from paring.core.records import Point, RunRecord
from paring.report import render, render_many
from tests.report.pages import Page
from tests.report.samples import EVIL, RECORDS, comparison, evil, page, run


@pytest.mark.parametrize("name", RECORDS)
def test_every_page_is_sound(name: str) -> None:
    html = page(name)
    html.encode("utf-8")
    found = Page(html)
    assert found.faults == []
    assert len(found.ids) == len(set(found.ids))
    assert found.references <= set(found.ids)
    assert not {"script", "img", "link", "iframe", "object", "base", "foreignobject", "animate"} & {tag for tag, _ in found.tags}
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert not re.search(r"(https?:)?//(?!\*)|@import|@font-face", re.sub(r"<(?:td|th|pre|code)\b.*?>.*?</", "", html))


def test_text_of_the_run_is_escaped_everywhere() -> None:
    text = Page(page("evil")).text
    assert text.count(EVIL) >= 15
    assert "<b>" not in page("evil")
    assert "<script" not in page("evil").lower()


def test_text_of_several_runs_is_escaped_everywhere() -> None:
    found = Page(render_many([evil(), run(history=(), modules=()), evil()], title=EVIL))
    assert found.faults == []
    assert not {"script", "b"} & {tag for tag, _ in found.tags}
    assert f"{EVIL} (2)" in found.text


def test_unprintable_characters_are_shown_as_such() -> None:
    html = page("unprintable")
    assert not re.search("[\x00\x1b\u202e]", html)
    assert "a\ufffd\ufffd\ufffdb" in html
    assert "漢字 $" in html


def test_a_page_has_all_of_the_run() -> None:
    record, text = run(), Page(page("usual")).text
    for module in record.modules:
        assert module.path in text
    assert "accuracy" in text
    assert "0.9132" in text
    for name, number in record.files.items():
        assert name in text
        assert f"{number:,}" in text
    for word in (
        *record.versions,
        *record.versions.values(),
        *record.machine,
        record.command,
        record.base_model,
        "Seed 42",
        "2025-03-01 14:05 UTC",
        "4 min 12 s",
        "optimizer.betas",
        "0.9, 0.999",
        "schedule.end",
        "target_modules",
        "query, key, value",
        "resume",
        "null",
        "22,713,216",
        "1,155",
    ):
        assert str(word) in text
    assert f"{record.live_ranks} of {record.start_ranks}" in text
    for number in (record.parameters, record.start_parameters):
        assert f"{number:,}" in text


def test_the_headline_numbers_come_first() -> None:
    text = Page(page("usual")).text
    text = text[text.index("Accuracy0.9132") :]
    order = [
        text.index(word)
        for word in ("Live ranks", "Adapter parameters", "Where the ranks are", "Over the run", "Adapted modules", "Repeat it")
    ]
    assert order == sorted(order)


def test_a_run_without_an_adapter_tells_of_blocks_and_not_of_ranks() -> None:
    text = Page(page("blocks")).text
    for said in (
        "Which blocks were trained",
        "Blocks trained",
        "5 of 6",
        "each for 40 of 100 steps on the mean",
        "at most 15.62 M at a time",
    ):
        assert said in text, said
    assert "ranks" not in text.lower()
    assert "Adapter" not in text
    table = text[text.index("Blocks (6)") :]
    assert re.search(r"encoder\.layer\.0\s*60\s*60%", table), table[:300]


def test_every_logged_value_is_in_the_table() -> None:
    html = page("usual")
    table = re.search(r'<table id="run-history">.*?</table>', html, re.DOTALL)
    assert table is not None
    assert table[0].count("<tr>") == 1 + 60
    for key in ("loss", "lambda", "live_parameters", "eval_accuracy", "epoch"):
        assert f">{key}</th>" in table[0]


def test_a_long_history_is_thinned_in_the_table_and_says_so() -> None:
    long = run(history=tuple(Point(step=step, values={"loss": 1 / step}) for step in range(10, 5001, 10)), modules=())
    html = render(long)
    assert "Logged values (200 of 500 steps, evenly spaced)" in html
    table = re.search(r'<table id="run-history">.*?</table>', html, re.DOTALL)
    assert table is not None
    assert ">10</th>" in table[0]
    assert ">5,000</th>" in table[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zero ranks", "No rank is left"),
        ("all NaN", "10 logged values are not finite; the first is eval_f1 at step 0."),
        ("all NaN", "Not finite at the end: f1."),
        ("nothing", "Nothing was logged during this run."),
        ("nothing", "This run adapted no module."),
        ("nothing", "nothing was exported"),
    ],
)
def test_what_a_reader_must_not_miss_is_said(name: str, said: str) -> None:
    assert said in Page(page(name)).text
    assert said not in Page(page("usual")).text


def test_the_same_record_gives_the_same_bytes_also_by_way_of_json() -> None:
    assert render(RunRecord.from_json(run().to_json())) == page("usual")


def test_settings_of_matplotlib_in_the_process_do_not_matter() -> None:
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path", "axes.facecolor": "red", "text.usetex": True}):
        assert render(run()) == page("usual")
        assert mpl.rcParams["font.size"] == 30


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from paring.report import render; from tests.report.samples import run\n"
        "pathlib.Path(sys.argv[1]).write_text(render(run()), 'utf-8')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "MPLBACKEND": "agg", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "page.html")], check=True, env=environment)
    assert (tmp_path / "page.html").read_text("utf-8") == page("usual")


def test_runs_stand_side_by_side() -> None:
    html = comparison()
    found = Page(html)
    assert found.faults == []
    assert len(found.ids) == len(set(found.ids))
    assert found.references <= set(found.ids)
    table = re.search(r'<table id="results">.*?</table>', html, re.DOTALL)
    assert table is not None
    rows = Page(table[0]).text
    for word in (
        "SoRA on tweets",
        "LoRA, r = 8",
        "0.9132",
        "0.9151",
        "0.8871",
        "270 of 576",
        "576 of 576",
        "248,832",
        "552,960",
        "1.1 MB",
        "2.1 MB",
        "4 min 12 s",
        "3 min 51 s",
    ):
        assert word in rows
    assert "Settings that differ" in found.text
    assert "method.schedule.end" in found.text


def test_runs_of_the_same_title_are_told_apart() -> None:
    text = Page(render_many([run(history=(), modules=()), run(history=(), modules=(), metrics={})])).text
    assert "SoRA on tweets (1)" in text
    assert "SoRA on tweets (2)" in text


def test_metrics_that_would_read_the_same_go_by_their_keys() -> None:
    text = Page(render_many([run(history=(), modules=(), metrics={"accuracy": 0.5, "eval_accuracy": 0.75, "f1": 1.0})])).text
    assert "Run accuracy eval_accuracy F1 Live ranks" in text.replace("</th>", " ") or re.search(
        r"Run\s*accuracy\s*eval_accuracy\s*F1", text
    )


def test_no_run_is_refused() -> None:
    with pytest.raises(DataError, match="at least one run record"):
        render_many([])


def test_the_main_metric_leads_and_else_no_loss_does() -> None:
    metrics = {"eval_loss": 0.5, "eval_runtime": 3.0, "zeta": 0.25, "accuracy": 0.75}
    assert "Zeta" in Page(render(run(history=(), modules=(), metrics=metrics, main_metric="zeta"))).text
    text = Page(render(run(history=(), modules=(), metrics=metrics, main_metric=None))).text
    assert text.index("0.75") < text.index("zeta 0.25") < text.index("loss 0.5")


def _luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: str, second: str) -> float:
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(scheme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\n *\}", page("usual"), re.DOTALL)
    colours = [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", block)) for block in blocks]
    light, dark = colours
    assert set(light) == set(dark)
    palette = light if scheme == "light" else dark
    pairs = [(role, "paper") for role in ("ink", "muted", "accent", "warn", *(f"series-{index}" for index in range(1, 7)))]
    pairs += [(role, "surface") for role in ("ink", "muted")]
    pairs += [(f"on-heat-{index}", f"heat-{index}") for index in range(9)]
    assert {
        pair: round(_contrast(palette[pair[0]], palette[pair[1]]), 2)
        for pair in pairs
        if _contrast(palette[pair[0]], palette[pair[1]]) < 4.5
    } == {}


def test_every_colour_of_a_figure_is_one_of_the_page() -> None:
    html = page("usual")
    figures = "".join(re.findall(r"<svg role.*?</svg>", html, re.DOTALL))
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", figures))
    assert used <= set(re.findall(r"--([a-z0-9-]+):", html))
    assert {"heat-0", "heat-8", "on-heat-8", "series-1", "rule"} <= used
    assert not re.search(r"(?:fill|stroke): #", figures)


def test_tables_have_captions_and_headings_and_scroll_by_themselves() -> None:
    html = page("usual")
    tables = re.findall(r'<div class="scroll[^>]*role="region"[^>]*tabindex="0">\s*<table.*?</table>', html, re.DOTALL)
    assert len(tables) == html.count("<table") >= 8
    for table in tables:
        assert "<caption" in table
        assert '<th scope="col"' in table
        assert '<th scope="row"' in table
