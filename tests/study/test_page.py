"""The page of a study: sound, escaped, the same bytes, and honest."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paring.core.errors import DataError, OutputExistsError
from paring.study.page import render_study, write_study_page
from paring.study.records import Findings
from paring.study.statistics import compare, holm
from paring.study.tables import listing
from tests.report.pages import Page
from tests.study.samples import EVIL, PERPLEXITY, entry, evil, findings, many, nothing, one_seed, usual

SAMPLES: dict[str, Callable[[], Findings]] = {"usual": usual, "evil": evil, "nothing": nothing, "one seed": one_seed, "many": many}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_page_is_sound(name: str) -> None:
    html = render_study(SAMPLES[name]())
    html.encode("utf-8")
    found = Page(html)
    assert found.faults == []
    assert len(found.ids) == len(set(found.ids))
    assert found.references <= set(found.ids)
    assert not {"script", "img", "link", "iframe", "object", "base", "foreignobject", "animate", "b", "strong"} & {
        tag for tag, _ in found.tags
    }
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert not re.search(r"(https?:)?//(?!\*)|@import|@font-face", re.sub(r"<(?:td|th|pre|code)\b.*?>.*?</", "", html))
    tables = re.findall(r'<div class="scroll[^>]*role="region"[^>]*tabindex="0">\s*<table.*?</table>', html, re.DOTALL)
    assert len(tables) == html.count("<table") > 0
    assert all("<caption" in table and '<th scope="row"' in table for table in tables)
    figures = "".join(re.findall(r"<svg role.*?</svg>", html, re.DOTALL))
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", figures)) <= set(re.findall(r"--([a-z0-9-]+):", html))
    assert not re.search(r"(?:fill|stroke): #", figures)


def test_text_of_the_study_is_escaped_everywhere() -> None:
    html = render_study(evil())
    assert Page(html).text.count(EVIL) >= 25
    assert "<script" not in html.lower()
    assert "<b>" not in html


def test_the_same_findings_give_the_same_bytes() -> None:
    assert render_study(usual()) == render_study(Findings.from_json(usual().to_json()))


def test_every_number_is_there() -> None:
    text = " ".join(Page(render_study(usual())).text.split())
    assert "4 contestants" in text
    assert "93 runs: 80 finished, 1 failed, 12 pruned" in text
    assert "90.20 [89.70, 90.70]" in text  # LoRA on trec: 0.2 times 4.303 over the root of 3
    assert "89.20 [88.70, 89.70]" in text
    assert re.search(r"cut @ 1/8\s*-1\.00\s*-1\.00", text)  # paired, and always the same
    assert re.search(r"SoRA\s*88\.50 \[\S+ \S+\]\s*2 of 3\s*seeds are missing", text)
    assert "2 of 3" in text
    assert "learning rate 0.001 (edge)" in text
    assert "factor 3, best 0.001" in text
    assert "paring study small.yaml" in text
    assert "40,000" in text


def test_what_a_reader_must_not_miss_is_said() -> None:
    text = " ".join(Page(render_study(usual())).text.split())
    assert "Only 3 seeds" in text
    assert "1 run failed: SoRA on trec." in text
    assert re.search(r"SoRA\s*trec\s*seed 1\s*Training diverged\.", text)
    assert "lies at the edge of what was tried for cut @ 1/2 on sst2, so" in text
    assert re.search(r"cut @ 1/2\s*sst2\s*learning rate\s*0\.001\s*0\.0003 to 0\.01", text)
    assert "With at most 9 pairs no p value of sign flips can be below 0.0039." in text
    assert "On one task no sign-flip test can have p below 0.25." in text
    assert "neither of other tasks nor of other rows to score on" in text
    assert "within one point of it, or within 1% of it where the metric is no share" in text
    assert "Not all tasks have the same metric" in text
    nine, ten = (findings(*(entry(name, "t", [0.5 + seed / 100 for seed in range(seeds)]) for name in "ab")) for seeds in (9, 10))
    assert "Only 9 seeds" in Page(render_study(nine)).text
    said = Page(render_study(ten)).text
    for absent in (
        "seeds: intervals are wide",
        "failed:",
        "at the edge of what was tried",
        "several versions",
        "kinds of machine",
        "same metric",
    ):
        assert absent not in said, absent
    mixed = replace(ten, versions={"torch": ["1", "2"]}, machines=[{"cores": 1}, {"cores": 2}])
    said = Page(render_study(mixed)).text
    assert "several versions of torch" in said
    assert "2 kinds of machine" in said
    assert "threads, so scores" not in said
    threads = replace(ten, machines=[{"cores": 12, "threads": 12}, {"cores": 12, "threads": 2}])
    assert "with 2 and 12 threads, so scores may differ in their last bits" in Page(render_study(threads)).text


def test_nothing_is_called_the_best_without_an_interval() -> None:
    text = " ".join(Page(render_study(one_seed())).text.split())
    assert "it is this one, or LoRA" in text
    assert "One seed alone: there are no intervals" in text
    assert re.search(r"LoRA\s*90\.00\s*1 of 1\s*not told apart", text)


def test_the_others_are_compared_with_the_reference() -> None:
    text = Page(render_study(usual(), reference="SoRA")).text
    assert "Points above SoRA" in text
    assert "Points above LoRA" not in text


def test_a_reference_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="no contestant 'Lora'.* Did you mean 'LoRA'"):
        render_study(usual(), reference="Lora")


def test_p_values_are_corrected_for_the_number_of_comparisons() -> None:
    names, generator = "abcd", np.random.default_rng(5)
    rows = [entry(name, "t", (0.5 + 0.02 * place + generator.normal(0, 0.01, 6)).tolist()) for place, name in enumerate(names)]
    study = findings(*rows)
    values = {name: p for name in names[1:] if (p := compare(study, name, "a").p) is not None}
    text = Page(render_study(study)).text
    assert "Holm's correction is for the 3 comparisons of the table." in text
    for name, corrected in holm(values).items():
        assert corrected > values[name]
        assert re.search(rf"{name}\s*\S+ \[\S+ \S+\]\s*\S+ \[\S+ \S+\]\s*{values[name]:.2g}\s*{corrected:.2g}", text), name


def test_small_scores_keep_their_digits_and_whole_settings_are_written_in_full() -> None:
    rows = [entry(name, "t", [0.001234 + seed * 1e-5 for seed in range(5)], chosen={"rank": 128.0, "rate": 0.00123}) for name in "ab"]
    text = Page(render_study(findings(*rows, metrics={"t": replace(PERPLEXITY, name="mse")}))).text
    assert "0.001254 [0.001" in text
    assert "rank 128, rate 0.00123" in text


def test_many_contestants_are_drawn_a_few_at_a_time_on_the_same_axes() -> None:
    rows = [entry(f"m{number}", "t", [0.5 + number / 100] * 2, parameters=1000 * (number + 1)) for number in range(14)]
    html = render_study(findings(*rows))
    titles = re.findall(r"<h3>(t: [^<]*)</h3>", html)
    assert titles == [f"t: accuracy against {what}, {part} of 3" for what in ("parameters", "the learning rate") for part in (1, 2, 3)]
    figures = re.findall(r'<svg role="img".*?</svg>', html, re.DOTALL)[:3]
    assert [len(set(re.findall(r"series-\d", figure))) for figure in figures] == [6, 6, 2]
    ticks = [re.findall(r">([\d.]+k?)</text>", figure) for figure in figures]
    assert ticks[0] == ticks[1] == ticks[2]
    assert len(ticks[0]) >= 4
    assert Page(html).text.count("it is this one") == 1


def test_the_names_without_a_rank_are_said() -> None:
    rows = [entry(name, task, [0.1 * place]) for place, name in enumerate("abc", 1) for task in "tu"]
    rows += [entry("d", "t", [0.9]), entry("d", "u", [None])]
    assert "Without a rank, since not every seed came to its end on every task: d." in Page(render_study(findings(*rows))).text


def test_ranks_are_drawn_or_said_to_be_missing() -> None:
    text = Page(render_study(usual())).text
    assert "means that are at most 1.91 apart (joined by a bar)" in text
    assert "Ranks need at least two tasks" in Page(render_study(one_seed())).text


def test_an_existing_page_is_kept_unless_asked(tmp_path: Path) -> None:
    path = write_study_page(usual(), tmp_path / "study" / "report.html")
    with pytest.raises(OutputExistsError):
        write_study_page(usual(), path)
    assert write_study_page(one_seed(), path, overwrite=True).read_text() == render_study(one_seed())


def test_a_listing_is_short() -> None:
    assert [listing(list("abcde"[:many])) for many in (1, 2, 3, 4)] == ["a", "a and b", "a, b and c", "a, b, c and 1 more"]
    assert listing(list("abcdef"), "or") == "a, b, c or 3 more"
