"""How robust a classifier is, in the measures of Jakubovitz and Giryes (ECCV 2018).

`evaluate` takes all of them over a data set; `rho_adv`, `geometry` and its parts take
one at a time.
"""

from fastjac.robustness.evaluation import evaluate
from fastjac.robustness.geometry import (
    Geometry,
    curvature_bound,
    distance_estimate,
    distance_lower_bound,
    geometry,
)
from fastjac.robustness.measures import rho_adv
from fastjac.robustness.report import Examples, RobustnessReport

__all__ = [
    "Examples",
    "Geometry",
    "RobustnessReport",
    "curvature_bound",
    "distance_estimate",
    "distance_lower_bound",
    "evaluate",
    "geometry",
    "rho_adv",
]
