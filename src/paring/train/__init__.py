"""Floor 5: training. Parameter groups, the Trainer's mixin and callback, the recorder, and the walk down to ever smaller adapters.

A plain loop needs none of this: the proximal step is taken by itself. What is here gives the gates a learning rate of their own,
watches the run, and writes down what happened.

Importing this package loads torch; what needs transformers is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paring.core.lazy import lazily
from paring.train.lisa import LISA

if TYPE_CHECKING:
    from paring.train.callback import ParingCallback
    from paring.train.down import Descent, Halve, Rise
    from paring.train.groups import create_optimizer, parameter_groups, separate, separate_heads
    from paring.train.guards import recast
    from paring.train.layers import LayerSampler, LISACallback
    from paring.train.planning import plan
    from paring.train.recorder import Recorder
    from paring.train.stages import run_stages, set_penalty, sparsify
    from paring.train.tolerance import StandardErrors, Tolerance, Within
    from paring.train.trainer import ParingTrainer, ParingTrainerMixin
    from paring.train.walk import Scores, Stage

__all__ = [
    "LISA",
    "Descent",
    "Halve",
    "LISACallback",
    "LayerSampler",
    "ParingCallback",
    "ParingTrainer",
    "ParingTrainerMixin",
    "Recorder",
    "Rise",
    "Scores",
    "Stage",
    "StandardErrors",
    "Tolerance",
    "Within",
    "create_optimizer",
    "parameter_groups",
    "plan",
    "recast",
    "run_stages",
    "separate",
    "separate_heads",
    "set_penalty",
    "sparsify",
]

_HOMES = {
    "Descent": "paring.train.down",
    "Halve": "paring.train.down",
    "LISACallback": "paring.train.layers",
    "LayerSampler": "paring.train.layers",
    "ParingCallback": "paring.train.callback",
    "ParingTrainer": "paring.train.trainer",
    "ParingTrainerMixin": "paring.train.trainer",
    "Recorder": "paring.train.recorder",
    "Rise": "paring.train.down",
    "Scores": "paring.train.walk",
    "Stage": "paring.train.walk",
    "StandardErrors": "paring.train.tolerance",
    "Tolerance": "paring.train.tolerance",
    "Within": "paring.train.tolerance",
    "create_optimizer": "paring.train.groups",
    "parameter_groups": "paring.train.groups",
    "plan": "paring.train.planning",
    "recast": "paring.train.guards",
    "run_stages": "paring.train.stages",
    "separate": "paring.train.groups",
    "separate_heads": "paring.train.groups",
    "set_penalty": "paring.train.stages",
    "sparsify": "paring.train.stages",
}

__getattr__, __dir__ = lazily(__name__, _HOMES)
