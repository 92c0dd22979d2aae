"""Checks the shapes that `rlhf_lightning.ops` declares, at run time and in every test."""

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# beartype, because typeguard 4 reads the shape strings as Python and fails; int passes where float is asked for.
install_import_hook("rlhf_lightning.ops", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

torch.set_num_threads(1)

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("repeatable")
