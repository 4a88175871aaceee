"""Checkpoints of a trainer that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer

from paring.core.errors import SettingError
from paring.exchange.folder import store
from paring.train.checkpoints import STATE, UNFINISHED, last_written, numbered

LITTLE = 64 * 1024
"""Bytes that are left at most on a disk that a file has filled up."""


class AtomicCheckpoints(Trainer):
    """Put it before any trainer that descends from ``transformers.Trainer``.

    A trainer writes the files of ``checkpoint-N`` one after the other under that name, and deletes old checkpoints file by file, so a kill
    or a full disk leaves a half one there. Here a checkpoint is written in a folder beside, and takes its name when it is complete; old
    ones lose their name before they are deleted. ``train(resume_from_checkpoint=True)`` passes over what another trainer left half written.

    Attributes:
        beside: further files of every checkpoint, by name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.beside: Mapping[str, bytes] = {}
        self._staged = False
        super().__init__(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` goes on from the newest checkpoint that was written to its end.

        Raises:
            SettingError: there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(self._newest(Path(self.args.output_dir or ".")))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _newest(self, folder: Path) -> Path:
        found, there = last_written(folder), numbered(folder)
        half = [item.name for item in there[0 if found is None else there.index(found) + 1 :]]
        if found is None:
            raise SettingError(
                f"resume_from_checkpoint=True: {str(folder)!r} holds no checkpoint that was written to its end; leave it out to start anew."
            )
        if half:
            warnings.warn(f"{', '.join(half)} in {str(folder)!r} was not written to its end; going on from {found.name}.", stacklevel=3)
        return found

    def _get_output_dir(self, trial: Any) -> str:
        folder = Path(super()._get_output_dir(trial))
        return str(folder / UNFINISHED if self._staged else folder)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._staged:  # Once it has its name: the upload goes on in the background.
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        staging, name = folder / UNFINISHED, f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)  # A run that was killed has left it.
        self.accelerator.wait_for_everyone()
        self._staged = True
        try:
            super()._save_checkpoint(model, trial)
            self._staged = False
            best = self.state.best_model_checkpoint == str(staging / name)
            if best:
                self.state.best_model_checkpoint = str(folder / name)
            self.accelerator.wait_for_everyone()  # Each process has written its part.
            if self.args.should_save:
                if best:
                    self.state.save_to_json(str(staging / name / STATE))
                for beside, data in self.beside.items():
                    store(staging / name / beside, data)
                _swap(staging / name, folder / name)
                self._drop_oldest(folder, name)
        except RuntimeError as error:
            if shutil.disk_usage(staging if staging.exists() else folder).free < LITTLE:
                # torch's writer says where in its own code it has failed, and not why.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / name)) from error
            raise
        finally:
            self._staged = False
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder / name))

    def _drop_oldest(self, folder: Path, newest: str) -> None:
        """Take the names of the oldest checkpoints beyond the limit, never of the one just written or the best."""
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        best = self.state.best_model_checkpoint
        kept = {newest, *([] if best is None else [Path(best).name])}
        # By the time of writing: a run that was begun anew in the same folder counts from the start.
        others = sorted((item for item in numbered(folder) if item.name not in kept), key=lambda item: item.stat().st_mtime_ns)
        for old in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
            old.rename(folder / UNFINISHED / f"{old.name}.old")


def _swap(folder: Path, place: Path) -> None:
    """Give a complete folder its name; what had it before is deleted with the folder that it was written in."""
    if place.exists():
        place.rename(folder.with_name(f"{place.name}.old"))
    folder.rename(place)
