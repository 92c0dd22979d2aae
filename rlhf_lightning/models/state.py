"""The state of networks: seeded initialization, fingerprints, frozen copies and weight files."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from rlhf_lightning.distributed import run_seed

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def seeded(seed: int | None = None) -> Iterator[None]:
    """Seed the CPU generator inside the block, and restore its state afterwards.

    Args:
        seed: None for the seed of the run.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run_seed() if seed is None else seed)
        yield


def fingerprint(module: nn.Module) -> str:
    """A SHA-256 hash of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen: with adapters, theirs alone."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def frozen_copy(module: Network) -> Network:
    """A copy that does not train; it shares the parameters that do not train in the original, as with adapters."""
    shared = {id(parameter): parameter for parameter in module.parameters() if not parameter.requires_grad}
    return copy.deepcopy(module, shared).requires_grad_(False)


def save_weights(module: nn.Module, file: Path) -> None:
    """Write parameters and buffers as safetensors; missing folders are created."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, file)
