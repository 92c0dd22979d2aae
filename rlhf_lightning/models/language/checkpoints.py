"""Reading models and tokenizers from folders or from the hub, with one line for whatever is wrong with them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rlhf_lightning.distributed import run_seed
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.text import PLAIN_CHAT_TEMPLATE

Loaded = TypeVar("Loaded")

STAGES = {
    "checkpoint": "the supervised stage makes it: python -m rlhf_lightning fit --config TASK.yaml "
    "--config configs/algorithms/sft.yaml --name NAME writes runs/NAME/export",
    "reward model": "the reward stage makes it: python -m rlhf_lightning fit --config TASK.yaml "
    "--config configs/algorithms/reward.yaml --name NAME writes runs/NAME/export",
}
"""What makes a checkpoint of each kind."""

_CONFIGS = ("config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load_model(auto: Any, path: str, *, kind: str = "checkpoint", **options: Any) -> PreTrainedModel:
    """A model in float32 with all its weights from the checkpoint.

    Args:
        auto: the transformers class that makes it.
        kind: of checkpoint, one of `STAGES`.
        options: passed on to ``from_pretrained``.

    Raises:
        UserError: it is missing, unreadable, incomplete, or of another kind.
    """
    model, missing = _load(auto, path, kind, options)
    _check_complete(missing, model, path, kind)
    return model


def load_with_new_heads(
    auto: Any, path: str, *, kind: str = "checkpoint", **options: Any
) -> tuple[PreTrainedModel, bool]:
    """The same where the checkpoint need not have what stands on the trunk, and whether it has not.

    New weights start at random, from the run's seed.
    """
    model, missing = _load(auto, path, kind, options)
    new = {name for name in missing if not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name}
    _check_complete(missing - new, model, path, kind)
    return model, bool(new)


def _load(auto: Any, path: str, kind: str, options: dict[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """A model, and which of its weights the checkpoint has not got, or in another shape."""

    def load() -> tuple[PreTrainedModel, dict[str, Any]]:
        with torch.random.fork_rng(devices=[]), _quiet():
            torch.manual_seed(run_seed())
            return auto.from_pretrained(
                path,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                **{"trust_remote_code": False, **options},
            )

    _refuse_pickles(path, kind)
    model, info = _reading(path, kind, load)
    if "score.weight" in info["unexpected_keys"]:
        raise UserError(f"{kind} {path} is a reward model; expected a language model")
    return model, {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def _check_complete(missing: set[str], model: PreTrainedModel, path: str, kind: str) -> None:
    if missing:
        raise UserError(
            f"{kind} {path} has no fitting weights for {_some(missing)} of {type(model).__name__}; "
            "expected all of them: is it another kind of model, or incomplete?"
        )


def load_tokenizer(path: str, *, kind: str = "checkpoint", **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, with the plain chat template if it comes without one.

    Raises:
        UserError: it is missing or unreadable.
    """
    options = {"trust_remote_code": False, **options}
    with _quiet():
        tokenizer = _reading(path, kind, lambda: AutoTokenizer.from_pretrained(path, **options))
    if len(tokenizer) == len(tokenizer.all_special_tokens):
        raise UserError(f"{kind} {path} has no tokenizer; expected tokenizer.json beside the model")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    return tokenizer


def is_local(path: str) -> bool:
    """Whether a name means a folder here rather than a model on the hub."""
    folder = Path(path)
    return (
        folder.exists()
        or path.startswith((".", os.sep, "~"))
        or path.count("/") > 1
        or folder.parts[:1] == ("runs",)
        or ("/" in path and folder.parent.is_dir())
    )


def _reading(path: str, kind: str, load: Callable[[], Loaded]) -> Loaded:
    """Run a loader; whatever it raises ends in one line."""
    if is_local(path):
        _check_folder(Path(path), kind)
    try:
        return load()
    except Exception as error:  # transformers, tokenizers and safetensors each have their own
        reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        if "trust_remote_code" in reason:
            raise UserError(
                f"{kind} {path} comes with code of its own, which is not run; expected a model of transformers (if you "
                "trust the code of a policy's checkpoint: backbone.init_args.trust_remote_code true)"
            ) from error
        if not Path(path).exists() and "couldn't connect" in reason:
            raise UserError(
                f"{kind} {path} does not exist here, and the hub cannot be reached; {STAGES[kind]}"
            ) from error
        raise UserError(f"{kind} {path} cannot be loaded: {reason[:300]}") from error


def _check_folder(folder: Path, kind: str) -> None:
    """See that a folder could hold a model or a tokenizer."""
    if not folder.exists():
        raise UserError(f"{kind} {folder} does not exist; {STAGES[kind]}")
    if not folder.is_dir():
        raise UserError(f"{kind} {folder} is a file; expected a folder with config.json and model.safetensors")
    if not any((folder / name).is_file() for name in _CONFIGS):
        found = f"did you mean {folder / 'export'}?" if (folder / "export").is_dir() else STAGES[kind]
        raise UserError(f"{kind} {folder} holds no model: there is no config.json in it; {found}")


def _refuse_pickles(path: str, kind: str) -> None:
    """Weights come as safetensors, which hold numbers only: a pickle can hold instructions."""
    found = sorted(file.name for pattern in _PICKLES for file in Path(path).glob(pattern))
    if found and not any(Path(path).glob("*.safetensors")):
        raise UserError(
            f"{kind} {path} has its weights in a pickle ({found[0]}), which is never read; expected model.safetensors, "
            "which save_pretrained of transformers writes"
        )


def _some(names: set[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out progress bars and reports about weights: `load_model` says what matters."""
    shown = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
