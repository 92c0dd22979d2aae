"""Readings: from what a run has logged to one number that a comparison is about."""

from rlhf_lightning.experiment.readings.course import (
    AtPeakOf,
    ChangeSincePeakOf,
    DropFromPeak,
    Last,
    MeanOfLast,
    MeanOverExperience,
    RelativeDistance,
    ShareBelow,
)
from rlhf_lightning.experiment.readings.frontier import AtKL, Fit, Hypervolume
from rlhf_lightning.experiment.readings.reading import Reading

READINGS: dict[str, type[Reading]] = {
    "last": Last,
    "mean_of_last": MeanOfLast,
    "mean_over_experience": MeanOverExperience,
    "share_below": ShareBelow,
    "drop_from_peak": DropFromPeak,
    "at_peak_of": AtPeakOf,
    "change_since_peak_of": ChangeSincePeakOf,
    "fit": Fit,
    "at_kl": AtKL,
    "hypervolume": Hypervolume,
    "relative_distance": RelativeDistance,
}
"""Every reading by the name that declarations have for it. A new one is a dataclass, entered here."""
