"""Floor 5: training. Parameter groups, the Trainer's mixin and callback, the recorder, and the walk down to ever smaller adapters.

A plain loop needs none of this: the proximal step is taken by itself. What is here gives the gates a learning rate of their own,
watches the run, and writes down what happened.
"""

from paring.train.callback import ParingCallback
from paring.train.down import Descent, Halve, Rise
from paring.train.groups import create_optimizer, parameter_groups, separate
from paring.train.guards import recast
from paring.train.lisa import LISA, LayerSampler, LISACallback
from paring.train.plan import plan
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
    "set_penalty",
    "sparsify",
]
