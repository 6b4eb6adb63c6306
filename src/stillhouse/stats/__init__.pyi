from .intervals import (
    Estimate as Estimate,
    exponential as exponential,
    interval as interval,
    paired_difference as paired_difference,
)
from .tails import clopper_pearson as clopper_pearson
