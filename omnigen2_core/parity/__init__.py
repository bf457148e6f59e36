"""Replays golden data of the reference implementation through this package and says how far the numbers agree."""

from .report import Row, all_hold
from .run import Setup, replay_folder

__all__ = ["Row", "Setup", "all_hold", "replay_folder"]
