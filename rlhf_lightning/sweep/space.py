"""A search space in the ``parameters`` syntax of W&B's sweeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from rlhf_lightning.errors import UserError, raise_all
from rlhf_lightning.sweep.distributions import Constant, ParameterDistribution, read_distribution


@dataclass(frozen=True)
class Space:
    """What may be tried.

    Args:
        distributions: by the names of their parameters, a dotted key each; those of a nested parameter have their path
            as name, joined by dots as well.
        nested: the path of each nested one, by its name: the key that stands on the command line, and those inside of
            its value.
    """

    distributions: dict[str, ParameterDistribution]
    nested: dict[str, tuple[str, ...]]

    @property
    def searched(self) -> dict[str, ParameterDistribution]:
        """The parameters that have more than one value."""
        return {name: one for name, one in self.distributions.items() if not isinstance(one, Constant)}

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Values for a trial, by the keys of a command line."""
        return self.assembled({name: one.draw(trial, name) for name, one in self.distributions.items()})

    def grid(self) -> dict[str, list[Any]]:
        """All values of each parameter that is searched, as Optuna has them.

        Raises:
            UserError: a parameter has no end of values.
        """
        grids = {name: one.grid() for name, one in self.searched.items()}
        raise_all(
            f"parameters.{name}: a grid needs values, or whole numbers from min to max"
            for name, values in grids.items()
            if values is None
        )
        return {name: values for name, values in grids.items() if values is not None}

    def size(self) -> int | None:
        """Number of points of the grid; None where there is no end of them."""
        counts = [one.grid() for one in self.searched.values()]
        return None if None in counts else math.prod(len(values) for values in counts if values is not None)

    def extremes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each end of each range, and each choice, the other parameters at their first: its name, and all values."""
        first = {name: one.ends()[0] for name, one in self.distributions.items()}
        yield "", self.assembled(first)
        for name, one in self.searched.items():
            for value in one.ends()[1:]:
                yield name, self.assembled({**first, name: value})

    def assembled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the keys of a command line: nested parameters are one mapping."""
        result: dict[str, Any] = {}
        for name, value in values.items():
            *path, last = self.nested.get(name, (name,))
            inside = result
            for key in path:
                inside = inside.setdefault(key, {})
            inside[last] = value
        return result


def option_words(values: Mapping[str, Any]) -> list[str]:
    """Words of a command line, as an agent of a W&B sweep writes them: ``--key=value`` with Python's ``str``."""
    return [f"--{key}={value}" for key, value in values.items()]


def read_space(parameters: Any, place: str) -> Space:
    """The search space that a ``parameters`` section of a W&B sweep describes.

    Args:
        place: where the section stands, for messages.

    Raises:
        UserError: something is wrong with it; the line names all places.
    """
    if not isinstance(parameters, Mapping) or not parameters:
        raise UserError(f"{place}: expected a mapping of keys to their values, such as {{lr: {{values: [0.1, 0.2]}}}}")
    distributions: dict[str, ParameterDistribution] = {}
    nested: dict[str, tuple[str, ...]] = {}
    mistakes: list[str] = []
    for path, settings in _leaves(parameters):
        name = ".".join(path)
        if len(path) > 1:
            nested[name] = path
        try:
            if not isinstance(settings, Mapping):
                raise UserError(f"{place}.{name}: expected {{value: …}}, {{values: […]}} or {{min: …, max: …}}")
            if name in distributions:
                raise UserError(f"{place}.{name} is given twice")
            distributions[name] = read_distribution(settings, f"{place}.{name}")
        except UserError as error:
            mistakes.append(str(error))
    raise_all(mistakes)
    return Space(distributions, nested)


def _leaves(parameters: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The parameters, those that are nested too, each with the path to it."""
    for key, settings in parameters.items():
        path = (*above, str(key))
        if isinstance(settings, Mapping) and isinstance(settings.get("parameters"), Mapping) and len(settings) == 1:
            yield from _leaves(settings["parameters"], path)
        else:
            yield path, settings
