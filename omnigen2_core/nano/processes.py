"""Processes that share a measurement on the processor's cores."""

from __future__ import annotations

import runpy
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import torch

from ..pipeline import OmniGen2Pipeline


def start_processes(count: int) -> ProcessPoolExecutor:
    """A pool of `count` fresh processes, one thread each, whose imports work as those of this one do."""
    return ProcessPoolExecutor(count, get_context("spawn"), initializer=_begin, initargs=(_launcher(),))


def _launcher() -> str | None:
    """The script that started this one as a module, where one did: dev.py's mends imports of torch's companions."""
    return next((given for given in sys.orig_argv[1:] if Path(given).name == "launcher.py"), None)


def _begin(launcher: str | None) -> None:
    """Does in a new process what the launcher did in this one."""
    if launcher:
        runpy.run_path(launcher)["mend_torch_companions"]()
    torch.set_num_threads(1)


@lru_cache(maxsize=1)
def load_pipeline(folder: Path, device: str | None = None) -> OmniGen2Pipeline:
    """A model folder, kept in this process until another one is wanted."""
    return OmniGen2Pipeline.from_folder(folder, device=device)
