"""What the machine can do at best: multiply matrices, and read memory."""

from __future__ import annotations

import platform

import torch
import transformers
from torch import nn

from rlhf_lightning.bench.timing import seconds_of
from rlhf_lightning.models.language.onednn import use_onednn

_SIDE = 2048
_BYTES = 256 << 20
_REPEATS = 5


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large square matrix products, by the layers of a model."""
    layer = nn.Linear(_SIDE, _SIDE, bias=False, device=device).to(dtype).requires_grad_(False)
    use_onednn(layer)
    inputs = torch.randn(_SIDE, _SIDE, device=device).to(dtype)
    seconds = min(seconds_of(lambda: layer(inputs)) for _ in range(_REPEATS))
    return 2 * _SIDE**3 / seconds


def bandwidth(device: torch.device) -> float:
    """Bytes per second that are read from memory."""
    data = torch.zeros(_BYTES // 4, device=device)
    return _BYTES / min(seconds_of(data.sum) for _ in range(_REPEATS))


def described(device: torch.device) -> str:
    """The machine, its measured limits, and the versions, in one line."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    rates = ", ".join(
        f"{matrix_rate(device, dtype) / 1e9:,.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}"
        for dtype in (torch.float32, torch.bfloat16)
    )
    return (
        f"{name}, {torch.get_num_threads()} threads; {rates}; {bandwidth(device) / 1e9:.0f} GB/s; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
