"""``paring study``: methods compared on tasks, each tuned with the same means; ``paring study compare A B``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from paring.cli.flags import option, simple
from paring.core.errors import OutputExistsError, SettingError, near

if TYPE_CHECKING:
    from paring.cli.study.build import Built
    from paring.study.records import Findings
    from paring.study.store import Store

_NEXT = re.compile(r",\s*(?=[^\W\d]\w*\s*=)")
"""The comma before a further definition; a value may hold others."""

RUNS, RESULTS, COSTS, FINDINGS, PAGE = "runs.db", "results.json", "costs.json", "findings.json", "report.html"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``paring study``."""

    study: list[str] = option("the study's YAML file; or `compare A B` for two of a study's contestants", positional=True, many=True)
    output_dir: str | None = option(
        "folder for the runs, the results and the report; by default the file's name without its end", default=None
    )
    define: str | list[str] | None = option("values for each $name that the file leaves open: data=FOLDER,base=FOLDER", default=None)
    workers: int | None = option("runs at a time, each in a process; by default as many as fit the cores", default=None)
    max_hours: float | None = option("begin only if the estimate is no more than so many hours of processor time", default=None)
    plan: bool = option("say how many runs and hours it takes, and stop", default=False)
    probe: bool = option("time a few steps of each contestant before beginning; --no_probe leaves that out", default=True)
    retry_failed: bool = option("make runs again that have failed", default=False)
    reference: str | None = option("the contestant that the others are compared with; by default the first one", default=None)


def run(options: Options) -> int:
    """Conduct a study, or compare two of its contestants."""
    if options.study and options.study[0] == "compare":
        return _compare(options)
    if len(options.study) != 1:
        raise SettingError(
            "Give the study's YAML file, as in `paring study study.yaml`, or `paring study compare A B --output_dir FOLDER`."
        )
    from paring.cli.console import calm_libraries
    from paring.cli.study.build import build
    from paring.cli.study.digests import with_digests
    from paring.cli.study.progress import workers_for
    from paring.cli.study.text import read_text
    from paring.study.store import alone, opened

    calm_libraries()
    file = Path(options.study[0])
    definitions = _definitions(options.define)
    built = build(read_text(file), definitions, _command(options, file))
    _check_reference(built, options.reference)
    folder = Path(options.output_dir) if options.output_dir is not None else file.with_suffix("")
    if folder.is_file():
        raise OutputExistsError(f"--output_dir {str(folder)!r} is a file; give a folder.")
    if options.max_hours is not None and not options.probe:
        raise SettingError("--no_probe and --max_hours: the hours are known from timing a few steps; leave one of them out.")
    # All data is read for it, so what is missing is refused before anything is written.
    built = replace(built, study=with_digests(built.study, built.definitions))
    workers = workers_for(options.workers, built.threads)
    with alone(folder / RUNS), opened(folder / RUNS) as store:
        return _conduct(options, built, store, folder, workers)


def _conduct(options: Options, built: Built, store: Store, folder: Path, workers: int) -> int:
    from paring.cli.console import INTERRUPTED, say
    from paring.cli.study.defaults import Defaults
    from paring.cli.study.progress import Line
    from paring.cli.study.told import plan_told, runs_told
    from paring.cli.study.work import Worker
    from paring.study.conduct import conduct
    from paring.study.notices import held_out

    study = built.study
    if study.held_out:
        say(f"study: {held_out(study.held_out)}")
    if not options.probe:
        runs_told(study)
    estimates = plan_told(study, store, built, options.max_hours) if options.probe else {}
    if options.plan:
        return 0
    try:
        with Line(study, estimates, workers) as line:
            findings = conduct(
                study,
                store,
                Worker(definitions=built.definitions),
                workers=workers,
                threads=built.threads,
                retry=options.retry_failed,
                today=Defaults(definitions=built.definitions),
                watch=line,
            )
    except KeyboardInterrupt:
        say(f"paring: stopped; what has run is kept in {store.path}. Go on with the same command:\n  {study.command}")
        return INTERRUPTED
    _write(findings, folder, options.reference)
    if all(score is None for entry in findings.entries for score in entry.scores):
        say(f"paring: no run came to its end; {folder / PAGE} tells what went wrong.")
        return 1
    return 0


def _write(findings: Findings, folder: Path, reference: str | None) -> None:
    """The results, what they cost, and the page."""
    from paring.cli.console import say
    from paring.cli.study.told import results_told
    from paring.exchange.folder import replace_file
    from paring.study.notices import mixed
    from paring.study.page import write_study_page
    from paring.study.results import costs_to_json, to_json

    replace_file(folder / RESULTS, to_json(findings, reference).encode())
    replace_file(folder / COSTS, costs_to_json(findings).encode())
    replace_file(folder / FINDINGS, findings.to_json().encode())
    write_study_page(findings, folder / PAGE, reference=reference, overwrite=True)
    results_told(findings)
    for said in mixed(findings):
        say(f"study: {said}")
    print(folder / PAGE)


def _compare(options: Options) -> int:
    from paring.cli.study.told import comparison_told
    from paring.study.records import Findings

    if len(options.study) != 3 or options.output_dir is None:
        raise SettingError("Give two contestants and the study's folder: paring study compare A B --output_dir FOLDER.")
    path = Path(options.output_dir) / FINDINGS
    if not path.is_file():
        raise SettingError(f"{options.output_dir!r} holds no {FINDINGS}: give the folder of a study that has come to its end.")
    findings = Findings.from_json(path.read_text(encoding="utf-8"))
    first, second = options.study[1:]
    for name in (first, second):
        if name not in findings.names:
            raise SettingError(f"The study has no contestant {name!r}.{near(name, findings.names)} It has {', '.join(findings.names)}.")
    comparison_told(findings, first, second)
    return 0


def _definitions(given: str | Sequence[str] | None) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for item in filter(None, _NEXT.split(given.strip(", ")) if isinstance(given, str) else given or ()):
        name, equals, value = item.partition("=")
        if not equals or not name.strip().isidentifier() or not value.strip():
            raise SettingError(f"--define {item}: give NAME=VALUE, several separated by commas.")
        found[name.strip()] = value.strip()
    return found


def _check_reference(built: Built, reference: str | None) -> None:
    from paring.study.records import named

    names = list(dict.fromkeys(named(cell.contestant, cell.budget) for cell in built.study.cells))
    if reference is not None and reference not in names:
        raise SettingError(f"--reference {reference}: the study has no such contestant.{near(reference, names)} It has {', '.join(names)}.")


def _command(options: Options, file: Path) -> str:
    words = ["paring", "study", str(file)]
    for name in ("output_dir", "define", "reference"):
        value = vars(options)[name]
        if value is not None:
            words += [f"--{name}", value if isinstance(value, str) else ",".join(value)]
    return shlex.join(words)


COMMAND = simple("study", "compare methods on tasks, each tuned with the same means", Options, run)
