"""Floor 3: several adapters made into one, without the base model and without training. One rule, one file."""

from paring.merge.adapters import merge, weighted_sum
from paring.merge.concatenation import Concatenation
from paring.merge.dare import DARE
from paring.merge.lego import Lego
from paring.merge.linear import Linear
from paring.merge.magnitude import Magnitude
from paring.merge.rule import Rule
from paring.merge.svd import SVD
from paring.merge.ties import TIES

__all__ = ["DARE", "SVD", "TIES", "Concatenation", "Lego", "Linear", "Magnitude", "Rule", "merge", "weighted_sum"]
