"""The frozen policy that training started from: in checkpoints by path and hash only."""

from __future__ import annotations

from typing import Any

from torch import nn

from rlhf_lightning.errors import UserError

_PREFIX = "reference."


def leave_out_reference(checkpoint: dict[str, Any], *, path: str | None, fingerprint: str | None) -> None:
    """Replace the tensors of the module's ``reference`` by where they came from and their hash."""
    state = checkpoint["state_dict"]
    for name in [name for name in state if name.startswith(_PREFIX)]:
        del state[name]
    checkpoint["reference"] = {"path": path, "hash": fingerprint}


def put_reference_back(
    checkpoint: dict[str, Any], reference: nn.Module | None, *, fingerprint: str | None, by: str
) -> None:
    """See that the reference is the one of the checkpoint, and have its tensors stay as they are.

    Args:
        by: the algorithm that loads.

    Raises:
        UserError: it is another, or the checkpoint names none.
    """
    if "reference" not in checkpoint:
        raise UserError(f"the checkpoint is not one of {by}: it names no reference policy")
    saved = checkpoint["reference"]
    if fingerprint != saved["hash"]:
        raise UserError(
            f"the reference policy is not the one of the checkpoint (it was {saved['path']}); "
            "expected the same backbone.init_args.checkpoint with unchanged files"
        )
    if reference is not None:
        tensors = {f"{_PREFIX}{name}": tensor for name, tensor in reference.state_dict().items()}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **tensors}
