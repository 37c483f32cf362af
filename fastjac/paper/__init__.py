"""The paper's tables and figures as experiments that run: `fastjac paper`.

`reproduce` plans the jobs of a recipe, runs those that are not finished, and writes the
report. `rows` says which experiments there are, `presets` with which settings.
"""

from fastjac.paper.experiment import PRESETS, reproduce
from fastjac.paper.runner import RunError
from fastjac.paper.source import TITLES as DATASETS

__all__ = ["DATASETS", "PRESETS", "RunError", "reproduce"]
