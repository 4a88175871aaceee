"""Floor 5: training. Parameter groups, the Trainer's mixin and callback, the recorder, and SoRA's sparsifying scheduler.

A plain loop needs none of this: the proximal step is taken by itself. What is here gives the gates a learning rate of their own,
watches the run, and writes down what happened.
"""

from paring.train.callback import ParingCallback
from paring.train.groups import create_optimizer, parameter_groups, separate
from paring.train.guards import recast
from paring.train.plan import plan
from paring.train.recorder import Recorder
from paring.train.stages import Scores, Stage, run_stages, set_penalty, sparsify
from paring.train.trainer import ParingTrainer, ParingTrainerMixin

__all__ = [
    "ParingCallback",
    "ParingTrainer",
    "ParingTrainerMixin",
    "Recorder",
    "Scores",
    "Stage",
    "create_optimizer",
    "parameter_groups",
    "plan",
    "recast",
    "run_stages",
    "separate",
    "set_penalty",
    "sparsify",
]
