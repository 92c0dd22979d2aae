"""What a reward model's ``evaluation.json`` holds, made up but consistent."""

import numpy as np

CONFIDENCE = np.arange(0.525, 1.0, 0.05)
STATED = [60, 71, 80, 92, 104, 118, 126, 131, 118, 95]
SCALED = [210, 196, 170, 142, 110, 74, 48, 26, 14, 5]
KAPPAS = {("ana", "bo"): 0.46, ("ana", "careless-annotator"): 0.08, ("bo", "careless-annotator"): -0.07}


def rows(**shares):
    """Rows of a breakdown: name → (accuracy, count), with an interval of two standard errors."""
    found = []
    for name, (accuracy, count) in shares.items():
        half = 2 * (accuracy * (1 - accuracy) / count) ** 0.5
        found.append(
            {
                "name": name.replace("_", " "),
                "accuracy": accuracy,
                "low": max(0.0, accuracy - half),
                "high": min(1.0, accuracy + half),
                "count": count,
            }
        )
    return found


def bins(counts, slope):
    """Bins in which the observed share rises ``slope`` times as fast as the stated one."""
    return [
        {"confidence": float(stated), "accuracy": float(0.5 + slope * (stated - 0.5)), "count": count}
        for stated, count in zip(CONFIDENCE, counts, strict=True)
    ]


def off_by(entries):
    """Mean distance between stated and observed, weighted by counts."""
    off = [abs(entry["confidence"] - entry["accuracy"]) for entry in entries]
    return float(np.average(off, weights=[entry["count"] for entry in entries]))


def evaluation(*, ceiling=0.712, members=5, annotators=True, pairs=8000, accuracy=0.661):
    """All that is measured; ``members`` 0 for a single model."""
    before, after = bins(STATED, 0.6), bins(SCALED, 0.95)
    return {
        "pairs": 995,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.03,
        "accuracy_high": accuracy + 0.03,
        "ceiling": ceiling,
        "loss": 0.612,
        "train": {"accuracy": accuracy + 0.05, "loss": 0.57},
        "fitted_to": pairs,
        "calibration_error": off_by(before),
        "temperature": 1.62,
        "calibration_error_scaled": off_by(after),
        "bins": before,
        "bins_scaled": after,
        "by_margin": rows(below_0_25=(0.53, 260), from_0_25_to_0_5=(0.61, 255), from_0_5_to_1=(0.70, 290))
        + rows(above_1=(0.84, 190)),
        "by_length_difference": rows(preferred_shorter=(0.58, 330), as_long=(0.64, 290), preferred_longer=(0.74, 375)),
        "by_annotator": rows(ana=(0.71, 410), bo=(0.66, 380), careless_annotator=(0.52, 205)) if annotators else [],
        "by_objective": rows(helpful=(0.69, 520), harmless=(0.63, 475)),
        "correlation": {"pearson": 0.681, "spearman": 0.66, "kendall": 0.48},
        "biases": [
            {"name": "length", "change": 0.34, "standard_error": 0.04, "share_up": 0.81, "count": 256},
            {"name": "politeness", "change": -0.05, "standard_error": 0.04, "share_up": 0.47, "count": 256},
        ],
        "members": {"accuracy": [0.64 + 0.005 * i for i in range(members)], "agreement": 0.83, "disagreement": 0.41}
        if members
        else None,
        "annotator_agreement": {
            "fleiss_kappa": 0.21,
            "cohen_kappa": [
                {"first": first, "second": second, "kappa": kappa, "count": 120}
                for (first, second), kappa in KAPPAS.items()
            ],
        }
        if annotators
        else None,
    }
