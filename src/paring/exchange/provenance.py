"""The side file of an export: where the adapter comes from, and what its weights were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paring.core.coding import is_whole
from paring.core.errors import AdapterError
from paring.core.factors import Factors
from paring.exchange import settings
from paring.exchange.folder import digest
from paring.exchange.layout import SIDE, WEIGHTS
from paring.exchange.tensors import LONGEST

_WIDEST = 2**31 - 1


@dataclass(frozen=True)
class Provenance:
    """What an export of paring says beside the adapter.

    Attributes:
        method: the encoded method.
        modules: widths and ranks of every module that training targeted.
        sha256: digest of the weights as they were written.
    """

    method: Mapping[str, Any] | None = None
    modules: Mapping[str, Mapping[str, Any]] | None = None
    sha256: str | None = None

    @classmethod
    def load(cls, path: Path | None) -> Provenance:
        """Read the side file; ``None`` says that there is none.

        Raises:
            AdapterError: the file is damaged.
        """
        if path is None:
            return cls()
        data = settings.load(path)
        method, modules = data.get("method"), data.get("modules", {})
        sound = (method is None or isinstance(method, dict)) and isinstance(modules, dict)
        if not sound or not all(isinstance(module, dict) and len(name) <= LONGEST for name, module in modules.items()):
            raise AdapterError(f"{str(path)!r} is not what paring writes; remove it to read the adapter without its provenance.")
        digests = data.get("sha256", {})
        return cls(method, modules, digests.get(WEIGHTS) if isinstance(digests, dict) else None)

    @contextmanager
    def checking(self, weights: Path) -> Iterator[None]:
        """Refuse weights that are not those that were exported: a damaged copy, or one that somebody has changed.

        The digest is formed while the weights are being read, and what it says comes before whatever went wrong with them.

        Raises:
            AdapterError: on leaving; says what to do.
        """
        if self.sha256 is None:
            yield
            return
        with ThreadPoolExecutor(max_workers=1) as beside:
            found = beside.submit(digest, weights)
            try:
                yield
            finally:
                if found.result() != self.sha256:
                    raise AdapterError(
                        f"{WEIGHTS} is not the file that was exported (its SHA-256 is another than in {SIDE}): it was damaged or changed "
                        f"since. Copy or export it again; if you changed it yourself, remove {SIDE}."
                    )

    def dead(self, alive: Mapping[str, Factors]) -> dict[str, Factors]:
        """The modules that training targeted and that have no rank left."""
        result = {}
        for path, module in (self.modules or {}).items():
            if path in alive:
                continue
            if module.get("live_rank") != 0:
                rank = module.get("live_rank")
                raise AdapterError(
                    f"{SIDE} lists module {path!r} with rank {rank!r}, but {WEIGHTS} lacks it; the files are of two adapters."
                )
            width, height = module.get("in_features"), module.get("out_features")
            if not is_whole(width, 1, _WIDEST) or not is_whole(height, 1, _WIDEST):
                raise AdapterError(f"{SIDE} gives module {path!r} the shape {height!r} x {width!r}; remove it to read without provenance.")
            result[path] = Factors(a=torch.zeros(0, width), b=torch.zeros(height, 0))
        return result
