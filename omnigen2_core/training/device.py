"""What the machine computes quickly."""

from __future__ import annotations

import torch


def fast_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bf16 where there is arithmetic for it. A CPU without AVX-512 emulates it, hundreds of times slower than fp32."""
    if torch.device(device).type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return torch.float32
    return torch.bfloat16
