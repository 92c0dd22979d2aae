"""What the machine can do at best: multiply matrices, and read memory."""

from __future__ import annotations

import torch

from rlhf_lightning.bench.timing import seconds_of

_SIDE = 2048
_BYTES = 256 << 20
_REPEATS = 5


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large square matrix products."""
    a, b = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    seconds = min(seconds_of(lambda: a @ b) for _ in range(_REPEATS))
    return 2 * _SIDE**3 / seconds


def bandwidth(device: torch.device) -> float:
    """Bytes per second that are read from memory."""
    data = torch.zeros(_BYTES // 4, device=device)
    return _BYTES / min(seconds_of(data.sum) for _ in range(_REPEATS))
