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
def _no_seed_left_over():
    """Commands set the run's seed in the environment: no test and no fixture sees that of another."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
