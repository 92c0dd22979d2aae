"""Loading models and tokenizers from folders or from the hub, with one line for every kind of error."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.markup import plain_chat_template
from rlhf_lightning.models.language.trunk import context_length, known_positions
from rlhf_lightning.models.state import seeded

log = logging.getLogger(__name__)

STAGES = {
    "checkpoint": "the supervised stage makes it: python -m rlhf_lightning fit --config TASK.yaml "
    "--config configs/algorithms/sft.yaml --name NAME writes runs/NAME/export",
    "reward model": "the reward stage makes it: python -m rlhf_lightning fit --config TASK.yaml "
    "--config configs/algorithms/reward.yaml --name NAME writes runs/NAME/export",
}
"""How to produce a checkpoint of each kind."""

_CONFIGS = ("config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load_model(auto: Any, path: str, *, kind: str = "checkpoint", trust_remote_code: bool = False) -> PreTrainedModel:
    """A model in float32, all of whose weights come from the checkpoint.

    A model without a head may lack its pooler, as masked language models do: only its hidden states are read.

    Args:
        auto: the transformers class that loads it, such as ``AutoModel``.
        kind: of checkpoint, one of `STAGES`.

    Raises:
        UserError: the checkpoint is missing, unreadable, incomplete, or of another kind.
    """
    model, missing = _load(auto, path, kind, trust_remote_code=trust_remote_code)
    unread = {name for name in missing if auto is AutoModel and name.startswith("pooler.")}
    _check_complete(missing - unread, model, path, kind)
    return model


def load_with_new_heads(
    auto: Any, path: str, *, trust_remote_code: bool, num_labels: int
) -> tuple[PreTrainedModel, bool]:
    """Like `load_model`, but layers on top of the trunk may be missing; returns also whether any of them is new.

    New weights are drawn with the seed of the run.
    """
    model, missing = _load(auto, path, "checkpoint", trust_remote_code=trust_remote_code, num_labels=num_labels)
    new = {name for name in missing if not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name}
    _check_complete(missing - new, model, path, "checkpoint")
    return model, bool(new)


def _load(auto: Any, path: str, kind: str, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """A model, and the names of its weights that are missing in the checkpoint or have another shape there."""
    _refuse_pickles(path, kind)
    with seeded():
        model, info = _loaded(
            auto,
            path,
            kind,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **options,
        )
    if "score.weight" in info["unexpected_keys"]:
        raise UserError(f"{kind} {path} is a reward model; expected a language model")
    known, length = known_positions(model), context_length(model)
    if length < known:
        why = "beyond, the positions of a row would depend on the longest row of its batch"
        log.warning("%s %s: its context ends at %d tokens rather than %d: %s", kind, path, length, known, why)
    return model, {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def _check_complete(missing: set[str], model: PreTrainedModel, path: str, kind: str) -> None:
    if missing:
        first, *others = sorted(missing)
        summary = f"{first} and {len(others)} more" if others else first
        raise UserError(
            f"{kind} {path} has no fitting weights for {summary} of {type(model).__name__}; "
            "expected all of them: is it another kind of model, or incomplete?"
        )


def load_tokenizer(path: str, *, kind: str = "checkpoint", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with the plain chat template if it has none.

    Raises:
        UserError: it is missing or unreadable.
    """
    tokenizer: PreTrainedTokenizerBase = _loaded(AutoTokenizer, path, kind, trust_remote_code=trust_remote_code)
    if len(tokenizer) == len(tokenizer.all_special_tokens):
        raise UserError(f"{kind} {path} has no tokenizer; expected tokenizer.json beside the model")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = plain_chat_template(tokenizer)
    return tokenizer


def _is_local(path: str) -> bool:
    """Whether a path means a local folder rather than a model on the hub."""
    folder = Path(path)
    return (
        folder.exists()
        or path.startswith((".", os.sep, "~"))
        or path.count("/") > 1
        or folder.parts[:1] == ("runs",)
        or ("/" in path and folder.parent.is_dir())
    )


def _loaded(auto: Any, path: str, kind: str, **options: Any) -> Any:
    """What ``from_pretrained`` returns; every exception becomes a `UserError` of one line."""
    if _is_local(path):
        _check_folder(Path(path), kind)
    try:
        with _quiet():
            return auto.from_pretrained(path, **options)
    except Exception as error:  # transformers, tokenizers and safetensors each have their own
        reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        if "trust_remote_code" in reason:
            raise UserError(
                f"{kind} {path} comes with code of its own, which is not run; expected a model of transformers (if you "
                "trust the code of a policy's checkpoint: backbone.init_args.trust_remote_code true)"
            ) from error
        if not Path(path).exists() and "couldn't connect" in reason:
            raise UserError(
                f"{kind} {path} is no folder here, and the hub cannot be reached; expected a connection to it, the "
                "model in its cache (HF_HOME), or a folder such as runs/NAME/export"
            ) from error
        raise UserError(f"{kind} {path} cannot be loaded: {reason[:300]}") from error


def _check_folder(folder: Path, kind: str) -> None:
    """Refuse a path that cannot be the folder of a model or a tokenizer."""
    if not folder.exists():
        raise UserError(f"{kind} {folder} does not exist; {STAGES[kind]}")
    if not folder.is_dir():
        raise UserError(f"{kind} {folder} is a file; expected a folder with config.json and model.safetensors")
    if not any((folder / name).is_file() for name in _CONFIGS):
        hint = f"did you mean {folder / 'export'}?" if (folder / "export").is_dir() else STAGES[kind]
        raise UserError(f"{kind} {folder} holds no model: there is no config.json in it; {hint}")


def _refuse_pickles(path: str, kind: str) -> None:
    """Refuse a folder whose weights are pickles only: a pickle can execute code, safetensors hold numbers alone."""
    pickles = sorted(file.name for pattern in _PICKLES for file in Path(path).glob(pattern))
    if pickles and not any(Path(path).glob("*.safetensors")):
        raise UserError(
            f"{kind} {path} has its weights in a pickle ({pickles[0]}), which is never read; expected "
            "model.safetensors, which save_pretrained of transformers writes"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars and reports about weights; `load_model` raises an error where they matter."""
    had_progress_bar = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if had_progress_bar:
            transformers_logging.enable_progress_bar()
