"""A Python function, named by its import path, as a reward source."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.rewards.source import RewardSource, checked_weights, reason
from rlhf_lightning.types import Prompt

KEY = "reward.init_args.function"


class FunctionReward(RewardSource):
    """Scores from a function ``(prompts, responses) -> numbers``, one number per response.

    A prompt is a text, or a conversation as a list of messages. The same response to the same prompt is passed once,
    however many rows of a rollout have it: a function that draws random numbers judges all of them alike. The numbers
    are a list, an array or a tensor. With ``weights``, the function returns a mapping from each objective to such
    numbers.

    Args:
        function: import path, ``package.module:name`` or ``package.module.name``; the working directory is on the
            search path.
        weights: weights of the objectives by name; None for a function that returns a single score.
        timeout: the run ends if a call takes more than this many seconds; None for no limit. With a limit, the
            function is called in another thread.
    """

    def __init__(self, function: str, weights: dict[str, float] | None = None, timeout: float | None = None) -> None:
        super().__init__()
        fits = timeout is None or 0 < timeout <= threading.TIMEOUT_MAX
        check_limits("reward.init_args", {"timeout": (fits, "a number of seconds above 0", timeout)})
        self.path = function
        self.function = imported(function)
        self.timeout = timeout
        self.objectives = checked_weights("reward.init_args.weights", weights)

    def reads(self) -> list[ModuleType]:
        """The module of the function."""
        return [sys.modules[_parts(self.path)[0]]]

    @property
    def label(self) -> str:
        """The class and the import path."""
        return f"FunctionReward {self.path}"

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """The numbers of the function [B], or [B, O] with objectives."""
        returned = self._call_or_explain(prompts, responses)
        first = f"(first prompt of the batch: {prompts[0]!r})"
        if not isinstance(returned, Mapping):
            if self.objectives:
                raise UserError(
                    f"{self.label} returned a {type(returned).__name__}; expected a mapping with numbers for "
                    f"{', '.join(self.objectives)}, which reward.init_args.weights names {first}"
                )
            return self._numbers(returned, prompts, responses)
        if set(returned) != set(self.objectives):
            names = ", ".join(map(str, returned))
            expected = ", ".join(self.objectives) or "one score only: reward.init_args.weights names no objectives"
            raise UserError(f"{self.label} returned {names or 'no objectives'}; expected {expected} {first}")
        return torch.stack([self._numbers(returned[name], prompts, responses) for name in self.objectives], dim=-1)

    def _call_or_explain(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:
        try:
            return self._call(prompts, responses)
        except UserError:
            raise
        except Exception as error:
            prompt, response = self._failing_example(type(error), prompts, responses)
            raise UserError(
                f"{self.label} raised {reason(error)}{_line_in(self.function, error)} for the response {response!r} to "
                f"the prompt {prompt!r}"
            ) from error

    def _call(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:
        if self.timeout is None:
            return self.function(list(prompts), list(responses))
        result: Future[Any] = Future()

        def work() -> None:
            try:
                with torch.no_grad():  # gradient mode is set per thread
                    result.set_result(self.function(list(prompts), list(responses)))
            except BaseException as error:
                result.set_exception(error)

        # A daemon thread, since a hanging call cannot be stopped and must not keep the process alive.
        threading.Thread(target=work, daemon=True).start()
        done, _ = wait([result], self.timeout)
        if not done:
            raise UserError(
                f"{self.label} took more than {self.timeout:g} seconds (reward.init_args.timeout) for {len(responses)} "
                f"responses (first prompt of the batch: {prompts[0]!r})"
            )
        return result.result()

    def _failing_example(
        self, kind: type[Exception], prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> tuple[Prompt, str]:
        """The first response for which the function raises the same error alone; the first of all if none does."""
        for prompt, response in zip(prompts, responses, strict=True):
            try:
                self._call([prompt], [response])
            except kind:
                return prompt, response
            except UserError:  # it takes too long
                break
            except Exception:
                continue
        return prompts[0], responses[0]

    def _numbers(self, values: Any, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """The values as float32 on every rank: ranks exchange scores, and integers on one rank would not fit floats.

        Raises:
            UserError: there is not one value for each response, or a value is not a number.
        """
        listed = values.tolist() if hasattr(values, "tolist") else values
        is_list = isinstance(listed, Sequence) and not isinstance(listed, str)
        if not is_list or len(listed) != len(responses):
            given = f"{len(listed)} scores" if is_list else f"a {type(values).__name__}"
            raise UserError(
                f"{self.label} returned {given} for {len(responses)} responses; expected one number for each (first "
                f"prompt of the batch: {prompts[0]!r})"
            )
        numbers = []
        for prompt, response, value in zip(prompts, responses, listed, strict=True):
            try:
                numbers.append(float(value))
            except Exception as error:
                raise UserError(
                    f"{self.label} returned {value!r} for the response {response!r} to the prompt {prompt!r}; expected "
                    "a number"
                ) from error
        return torch.tensor(numbers, dtype=torch.float32)


def imported(path: str) -> Callable[..., Any]:
    """The function at an import path.

    Raises:
        UserError: there is no such module or name, or it is not a function.
    """
    module_name, name = _parts(path)
    if not module_name or not name:
        raise UserError(f"{KEY} is {path!r}; expected package.module:name or package.module.name")
    if not {"", os.getcwd()} & set(sys.path):  # missing when an installed command runs
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        target: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing a script may exit
        raise UserError(f"{KEY} is {path!r}, and importing {module_name} raised {reason(error)}") from error
    for part in name.split("."):
        if not hasattr(target, part):
            raise UserError(f"{KEY} is {path!r}, and {module_name} has no {name}; expected a function in it")
        target = getattr(target, part)
    if not callable(target) or inspect.isclass(target):
        kind = "class" if inspect.isclass(target) else type(target).__name__
        raise UserError(f"{KEY} is {path!r}, which is a {kind}; expected a function (prompts, responses) -> scores")
    return target


def _parts(path: str) -> tuple[str, str]:
    """The names of the module and of the function in it."""
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    return module_name, name


def _line_in(function: Callable[..., Any], error: Exception) -> str:
    """The line in the function's own file that raised an error, since no traceback is shown."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""
