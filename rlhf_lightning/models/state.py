"""Telling whether two networks are the same, and keeping one as it is."""

from __future__ import annotations

import copy
import hashlib
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def fingerprint(module: nn.Module) -> str:
    """A hash of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def frozen_copy(module: Network) -> Network:
    """A copy that does not train; with adapters it takes no memory for the weights that both leave as they are."""
    shared = {id(parameter): parameter for parameter in module.parameters() if not parameter.requires_grad}
    return copy.deepcopy(module, shared).requires_grad_(False)
