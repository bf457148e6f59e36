"""The machine: what it is, what its matrix products reach, what memory was taken."""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class MatrixProduct:
    """A product whose speed is taken for what the machine can do; by default as large as a feed-forward's."""

    rows: int = 2048
    inner: int = 2560
    columns: int = 10240

    @property
    def flops(self) -> float:
        """Its floating-point operations, a multiplication and an addition apart."""
        return 2.0 * self.rows * self.inner * self.columns

    def make(self, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
        """Does the product, on values that are drawn once."""
        draw = torch.Generator().manual_seed(0)
        a = torch.randn(self.rows, self.inner, generator=draw).to(device, dtype)
        b = torch.randn(self.columns, self.inner, generator=draw).to(device, dtype)
        out = torch.empty(self.rows, self.columns, dtype=dtype, device=device)
        return lambda: torch.mm(a, b.T, out=out)


def describe(device: torch.device, versions: dict[str, str]) -> dict[str, str]:
    """Processor or card, system, versions and date, for the head of a table. versions: of further programs."""
    about = {"processor": f"{_processor()}, {torch.get_num_threads()} threads"}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        about["card"] = f"{card.name}, {card.total_memory / 1e9:.0f} GB"
    about["system"] = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    about |= {"PyTorch": torch.__version__, **versions}
    about["date"] = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return about


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    extension = torch.backends.cpu.get_cpu_capability()
    return f"{', '.join(sorted(names)) or platform.machine()} ({extension})"


def peak_host_memory() -> int:
    """The most bytes that this process has had in memory so far."""
    try:
        import resource
    except ImportError:
        import psutil

        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def peak_device_memory(device: torch.device) -> int | None:
    """The most bytes on a card since `torch.cuda.reset_peak_memory_stats`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
