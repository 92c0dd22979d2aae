"""`Measure`: what a comparison reads from each run, as declared under ``measures:`` and as its primary metric.

```yaml
measures:
  kl: {metric: eval/kl_ref_sequence, read: last, better: lower}
  late: {metric: eval/score, read: {mean_of_last: 5}, scale: [0, 500]}
  r2: {metric: eval/gold, read: {fit: {form: rl, give: r2}}}
```
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from rlhf_lightning.errors import UserError, raise_all, suggestion
from rlhf_lightning.experiment.readings import READINGS
from rlhf_lightning.experiment.readings.course import Last
from rlhf_lightning.experiment.readings.reading import MissingError, Reading, is_name, is_number
from rlhf_lightning.records.runs import Run

_KEYS = ("metric", "read", "better", "scale", "failed")
_BEST = ("max", "min", "best", "peak")
_BEST_IS_REFUSED = (
    "the best of many looks is biased upward, the more the noisier an arm is; "
    "read the last evaluation (last) or the mean of the last K ({mean_of_last: K})"
)


@dataclass(frozen=True)
class Measured:
    """What a measure found in one run.

    Args:
        value: NaN where the run lacks it.
        missing: why it lacks it, going on from "the run …"; empty where it does not.
        note: what a reader should know of the value, such as that the run was cut short; empty if nothing.
    """

    value: float
    missing: str = ""
    note: str = ""


@dataclass(frozen=True)
class Measure:
    """One number of each run.

    Args:
        name: as declared.
        metric: as logged.
        better: which of two values is better.
        scale: the worst and the best value that there can be; None where there is no such scale.
        failed: what a run that failed counts as; None where neither this nor a scale is declared.
    """

    name: str
    metric: str
    reading: Reading = field(default_factory=Last)
    better: Literal["higher", "lower"] = "higher"
    scale: tuple[float, float] | None = None
    failed: float | None = None

    def read(self, run: Run) -> Measured:
        """The number of a run, or of that stage of a pipeline which has logged the metric."""
        part = _part(run, self.metric)
        try:
            value = self.reading.value(part, self.metric)
        except MissingError as missing:
            return Measured(math.nan, missing=str(missing))
        if not math.isfinite(value):
            return Measured(math.nan, missing=f"has values of {self.metric} from which nothing finite can be read")
        return Measured(value, note=ending(part, self.metric))


def ending(run: Run, metric: str) -> str:
    """What is unusual about the end of a run, or about the last value of a metric; empty if nothing."""
    end, last = run.metrics[run.axis].iloc[-1], run.series(metric).index[-1]
    notes = []
    budget = run.setting({"iteration": "trainer.max_epochs", "step": "trainer.max_steps"}.get(run.axis, ""))
    if not run.done:
        notes.append(f"unfinished: {run.axis} {end} so far")
    elif is_number(budget) and end < budget:
        notes.append(f"was stopped at {run.axis} {end} of {budget}")
    if last < end:
        notes.append(f"{metric} was last logged at {run.axis} {last}, before the end at {end}")
    return "; ".join(notes)


def check_logged(measures: Iterable[Measure], runs: Iterable[Run]) -> None:
    """Check that each metric was logged by a run at least.

    Raises:
        UserError: one was not; the message names metrics that were.
    """
    logged = {column for run in runs for part in (run, *run.stages.values()) for column in part.columns[1:]}
    known = f"expected one of {', '.join(sorted(logged))}" if logged else "no run has logged anything"
    raise_all(
        f"measure {measure.name}: no run has logged {metric}; {suggestion(metric, logged, otherwise=known)}"
        for measure in measures
        for metric in (measure.metric, *measure.reading.further_metrics)
        if metric not in logged
    )


def _part(run: Run, metric: str) -> Run:
    """The run, or the stage of a pipeline that has logged a metric: its policy's where several have."""
    parts = [run, *([run.policy] if run.policy else []), *run.stages.values()]
    return next((part for part in parts if metric in part.columns), run.policy or run)


# -- reading declarations ----------------------------------------------------------------------------------------


def read_measures(declared: object, place: str) -> dict[str, Measure]:
    """The measures under ``measures:``, by name.

    Args:
        place: of the mapping, for messages, such as ``experiments/clip.yaml: measures``.

    Raises:
        UserError: names everything that is wrong, and where.
    """
    if not isinstance(declared, Mapping):
        raise UserError(f"{place}: expected a mapping of names to measures, got {declared!r}")
    found: dict[str, Measure] = {}
    mistakes = []
    for name, content in declared.items():
        try:
            found[str(name)] = read_measure(str(name), content, f"{place}.{name}")
        except UserError as error:
            mistakes.append(str(error))
    raise_all(mistakes)
    return found


def read_primary(declared: object, place: str, *, name: str = "primary") -> Measure:
    """The measure that decides a comparison.

    Raises:
        UserError: see `read_measure`; or it is one that cannot decide a comparison.
    """
    measure = read_measure(name, declared, place)
    if reason := measure.reading.unfit_as_primary(measure.metric):
        raise UserError(f"{place}.read: {reason}, which cannot decide a comparison; expected last or mean_of_last")
    return measure


def read_measure(name: str, declared: object, place: str) -> Measure:
    """One measure.

    Args:
        declared: ``metric``, and if they are not the default, ``read``, ``better``, ``scale`` and ``failed``.
        place: for messages.

    Raises:
        UserError: a key or a value is wrong.
    """
    if not isinstance(declared, Mapping):
        raise UserError(f"{place}: expected a mapping such as {{metric: eval/score, read: last}}, got {declared!r}")
    content: Mapping[Any, Any] = declared
    mistakes = [
        f"{place}: unknown key {key!r}; " + suggestion(str(key), _KEYS, otherwise=f"expected {', '.join(_KEYS)}")
        for key in content
        if key not in _KEYS
    ]
    metric, better = content.get("metric"), content.get("better", "higher")
    if not is_name(metric):
        mistakes.append(f"{place}.metric: expected the name of a logged metric such as eval/score, got {metric!r}")
    if better not in ("higher", "lower"):
        mistakes.append(f"{place}.better: expected higher or lower, got {better!r}")
    raise_all(mistakes)
    scale = _scale(content.get("scale"), better, f"{place}.scale")
    failed = content.get("failed")
    if not (failed is None or is_number(failed)):
        raise UserError(f"{place}.failed: expected the number that a failed run counts as, got {failed!r}")
    if failed is None and scale is not None:
        failed = scale[0]
    return Measure(
        name,
        str(metric),
        read_reading(content.get("read", "last"), f"{place}.read"),
        better,
        scale,
        None if failed is None else float(failed),
    )


def read_reading(declared: object, place: str) -> Reading:
    """A reading: its name, or its name with one value, or with a mapping of its keys.

    Raises:
        UserError: it is unknown, reads the best value on the way, or its values do not fit.
    """
    name: object = declared
    given: object = {}
    if isinstance(declared, Mapping):
        if len(declared) != 1:
            raise UserError(f"{place}: expected one reading such as {{mean_of_last: 5}}, got {dict(declared)!r}")
        ((name, given),) = declared.items()
    if name in _BEST:
        raise UserError(f"{place}: {name} is refused: {_BEST_IS_REFUSED}")
    if not isinstance(name, str) or name not in READINGS:
        hint = suggestion(str(name), READINGS, otherwise=f"expected {', '.join(READINGS)}")
        raise UserError(f"{place}: unknown reading {name!r}; {hint}")
    reading = READINGS[name]
    arguments = fields(reading)
    if not isinstance(given, Mapping):
        if not arguments:
            raise UserError(f"{place}: {name} takes no value, got {given!r}")
        given = {arguments[0].name: given}
    known = [argument.name for argument in arguments]
    needed = [argument.name for argument in arguments if argument.default is MISSING]
    mistakes = [
        f"{place}: {name} has no key {key!r}; "
        + suggestion(str(key), known, otherwise=f"expected {', '.join(known) or 'none'}")
        for key in given
        if key not in known
    ]
    mistakes += [f"{place}: {name} needs {key}" for key in needed if key not in given]
    raise_all(mistakes)
    try:
        return reading(**given)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _scale(declared: object, better: str, place: str) -> tuple[float, float] | None:
    """The worst and the best value, in this order."""
    if declared is None:
        return None
    if not (isinstance(declared, list | tuple) and len(declared) == 2 and all(map(is_number, declared))):
        raise UserError(f"{place}: expected [worst, best], two numbers, got {declared!r}")
    worst, best = map(float, declared)
    if worst == best or (worst < best) != (better == "higher"):
        side = "below" if better == "higher" else "above"
        raise UserError(f"{place}: expected [worst, best] with the worst {side} the best, since {better} is better")
    return worst, best
