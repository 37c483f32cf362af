"""The two phases of training: the regular one, and the hardening one after it."""

from fastjac.harden.interrupt import TrainingInterrupted
from fastjac.harden.loop import NonFiniteLossError
from fastjac.harden.objective import PENALTIES, Objective
from fastjac.harden.phases import harden, train
from fastjac.harden.records import EpochRecord, TrainingResult
from fastjac.harden.team import ProcessLostError

__all__ = [
    "PENALTIES",
    "EpochRecord",
    "NonFiniteLossError",
    "Objective",
    "ProcessLostError",
    "TrainingInterrupted",
    "TrainingResult",
    "harden",
    "train",
]
