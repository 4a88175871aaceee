"""A disk that is full or cannot be written: one sentence, nothing half-written, and what was there before is intact."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from paring.core.errors import ExportError
from paring.exchange.folder import digest, replace_file
from paring.exchange.layout import WEIGHTS
from paring.exchange.read import read
from paring.exchange.write import write
from paring.report.write import write_page
from paring.study.records import Job, Outcome, Phase, State
from paring.study.store import opened
from paring.train.checkpoints import complete, numbered
from tests.cli.conftest import TRAIN, plain_report  # noqa: F401 - a fixture that is used by itself
from tests.cli.test_bad_input import Refused, Run
from tests.exchange.helpers import adapter, contents
from tests.trust.disks import PAGE, Disk
from tests.trust.grids import cell

# Together they take minutes.
pytestmark = pytest.mark.slow

Mount = Callable[[int], Disk]

full = cell("faults", "full disk", "one sentence, no work lost")
whole = cell("faults", "full disk", "nothing half-written at a final path")
locked = cell("faults", "read-only folder", "one sentence, no work lost")


@full
@whole
def test_an_export_at_every_fill_level(disk: Mount, record_property: Callable[[str, object], None]) -> None:
    small = disk(64 * PAGE)
    wide = {f"block.{index}": 4 for index in range(8)}
    old, new = adapter({"fc": 2}), adapter(wide)
    write(old, small.place / "out")
    before = contents(small.place / "out")
    said: list[str] = []
    for pages in range(12):
        small.leave(pages * PAGE)
        try:
            write(new, small.place / "out", overwrite=True)
        except ExportError as error:
            said.append(str(error))
            assert contents(small.place / "out") == before
        else:
            break
        finally:
            assert small.names() == ["out"]
    assert len(said) >= 4
    assert all("No space left" in one for one in said)
    assert read(small.place / "out").ranks == wide
    record_property("trust", f"export at {len(said)} fill levels")


@full
@whole
def test_an_export_by_the_command_line(disk: Mount, trained: Path, refused: Refused) -> None:
    small = disk(64 * PAGE)
    shutil.copytree(trained / "adapter", small.place / "adapter")
    before = contents(small.place / "adapter")
    small.leave(2 * PAGE)
    said = refused("export", trained / "checkpoint-4", small.place / "adapter", "--overwrite")
    assert "No space left" in said
    assert "nothing was changed" in said
    assert contents(small.place / "adapter") == before
    assert small.names() == ["adapter"]


@full
@whole
@cell("faults", "full disk", "resumes to the same bits")
@pytest.mark.parametrize("pages", [44, *(pytest.param(pages, marks=pytest.mark.slow) for pages in (2, 14, 31, 64))])
def test_a_training_goes_on_when_there_is_space_again(
    pages: int,
    disk: Mount,
    trained: Path,
    bert: Path,
    moods: Path,
    refused: Refused,
    run: Run,
) -> None:
    small = disk(256 * PAGE)
    small.leave(pages * PAGE)
    out = small.place / "out"
    flags: dict[str, object] = {**TRAIN, "model_name_or_path": bert, "dataset_name": moods, "output_dir": out}
    assert "space left" in refused("train", **flags)
    assert all(complete(checkpoint) for checkpoint in numbered(out))
    assert {item.name for item in out.iterdir()} <= {"checkpoint-4", "checkpoint-8", "run.json"} if out.exists() else True
    small.empty()
    left = numbered(out)
    if left and left[-1].name == "checkpoint-8":
        assert run("export", left[-1], out / "adapter") == 0
    else:
        assert run("train", **flags, **({"resume_from_checkpoint": "last"} if left else {})) == 0
    assert digest(out / "adapter" / WEIGHTS) == digest(trained / "adapter" / WEIGHTS)


@full
@whole
def test_a_report_and_a_file(disk: Mount) -> None:
    small = disk(32 * PAGE)
    write_page(small.place / "report.html", lambda: "old", overwrite=False)
    replace_file(small.place / "run.json", b"old")
    small.leave(3 * PAGE)
    with pytest.raises(ExportError, match="could not be written .*No space left"):
        write_page(small.place / "report.html", lambda: "new" * 10 * PAGE, overwrite=True)
    with pytest.raises(OSError, match="No space left"):
        replace_file(small.place / "run.json", b"new" * 10 * PAGE)
    assert small.names() == ["report.html", "run.json"]
    assert {(small.place / name).read_text() for name in small.names()} == {"old"}


def job(number: int) -> Job:
    """One run of a study."""
    return Job(contestant="LoRA", task="trec", budget=None, phase=Phase.FINAL, seed=number, settings={"number": number})


@full
@whole
def test_a_studys_runs(disk: Mount) -> None:
    small = disk(64 * PAGE)
    outcome = Outcome(state=State.FINISHED, metrics={"accuracy": 0.5}, error="x" * PAGE)
    with opened(small.place / "runs.sqlite") as store:
        store.put(job(0), outcome)
        small.leave(4 * PAGE)
        said, kept = "", 1
        for kept in range(1, 50):
            try:
                store.put(job(kept), outcome)
            except ExportError as error:
                said = str(error)
                break
    assert "could not be written" in said
    assert "full" in said
    small.leave(0)
    with opened(small.place / "runs.sqlite") as store:
        assert store.get(job(kept)) is None
    small.empty()
    with opened(small.place / "runs.sqlite") as store:
        assert all(store.get(job(number)) == outcome for number in range(kept))
        store.put(job(kept), outcome)
        assert store.get(job(kept)) == outcome


@full
def test_a_new_store_on_a_full_disk(disk: Mount) -> None:
    small = disk(16 * PAGE)
    small.leave(0)
    with pytest.raises(ExportError, match="could not be written"), opened(small.place / "runs.sqlite"):
        pass


@locked
@cell("faults", "read-only folder", "nothing half-written at a final path")
@pytest.mark.parametrize("command", ["new export", "export over", "train", "train on", "study"])
def test_a_folder_that_cannot_be_written(
    command: str,
    disk: Mount,
    trained: Path,
    bert: Path,
    moods: Path,
    refused: Refused,
) -> None:
    small = disk(512 * PAGE)
    run_folder = Path(shutil.copytree(trained, small.place / "run"))
    before = contents(run_folder)
    small.read_only()
    flags: dict[str, object] = {**TRAIN, "model_name_or_path": bert, "dataset_name": moods}
    try:
        if command == "new export":
            said = refused("export", run_folder / "checkpoint-8", small.place / "new")
        elif command == "export over":
            said = refused("export", run_folder / "checkpoint-8", run_folder / "adapter", "--overwrite")
        elif command == "train":
            said = refused("train", **flags, output_dir=small.place / "new")
        elif command == "train on":
            said = refused("train", **flags, output_dir=run_folder, resume_from_checkpoint=run_folder / "checkpoint-4")
        else:
            with pytest.raises(ExportError, match="could not be written") as raised, opened(small.place / "new" / "runs.sqlite"):
                pass
            said = f"{raised.value} Read-only"
        assert "ead-only" in said or "No permission" in said
        assert "unexpected" not in said
        assert small.names() == ["run"]
        assert contents(run_folder) == before
    finally:
        small.writable()


@cell("faults", "read-only folder", "resumes to the same bits")
def test_what_is_only_read_may_lie_in_a_folder_that_cannot_be_written(
    disk: Mount,
    trained: Path,
    bert: Path,
    moods: Path,
    run: Run,
    tmp_path: Path,
) -> None:
    small = disk(512 * PAGE)
    for source, name in ((trained, "run"), (moods, "moods")):
        shutil.copytree(source, small.place / name)
    small.read_only()
    flags: dict[str, object] = {**TRAIN, "model_name_or_path": bert, "dataset_name": small.place / "moods"}
    assert run("export", small.place / "run" / "checkpoint-8", tmp_path / "adapter") == 0
    assert run("predict", small.place / "run" / "adapter", "fine") == 0
    checkpoint = small.place / "run" / "checkpoint-4"
    assert run("train", **flags, output_dir=tmp_path / "out", resume_from_checkpoint=checkpoint) == 0
    for place in (tmp_path, tmp_path / "out"):
        assert digest(place / "adapter" / WEIGHTS) == digest(trained / "adapter" / WEIGHTS)
