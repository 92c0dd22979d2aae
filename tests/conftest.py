"""Checks the shapes that `rlhf_lightning.ops` declares, at run time and in every test."""

import os

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("rlhf_lightning.ops", "shape_checks.checked")

torch.set_num_threads(1)

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _own_seed():
    """No test sees the seed that a command set in the environment before it, or goes on from another's draws."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    torch.manual_seed(0)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
