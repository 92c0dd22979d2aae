"""Figures that ``compare`` draws from tables."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from rlhf_lightning import plots
from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import style
from tests.plots.figure_text import overlapping_texts
from tests.plots.synthetic_arms import NAMES

VERDICTS = ("better", "undecided: 14 more seeds", "equivalent")


def ended(count, *, scale=1.0):
    """Arms with means 0.6, 0.64, …; every third was not published, and of the second two runs failed."""
    number = np.arange(count)
    mean = 0.6 + 0.04 * number
    return pd.DataFrame(
        {
            "arm": NAMES[:count],
            "mean": mean,
            "low": mean - 0.03,
            "high": mean + 0.03,
            "n": 10,
            "published": np.where(number % 3 == 2, np.nan, scale * (mean + 0.01)),
            "failed": np.where(number == 1, 2, 0),
        }
    )


def claimed(count):
    estimate = -0.1 + 0.04 * np.arange(count)
    return pd.DataFrame(
        {
            "claim": [f"{name} ends above ppo" for name in NAMES[:count]],
            "estimate": estimate,
            "low": estimate - 0.05,
            "high": estimate + 0.05,
            "margin": 0.02,
            "verdict": [VERDICTS[index % 3] for index in range(count)],
        }
    )


def profile(count):
    tau = np.linspace(0, 1.2, 25)
    shares = [np.clip(1.2 - tau + 0.04 * index, 0, 1) for index in range(count)]
    return pd.concat(
        pd.DataFrame({"tau": tau, "arm": name, "share": share, "low": share - 0.05, "high": share + 0.05})
        for name, share in zip(NAMES[:count], shares, strict=True)
    )


def dots(figure):
    return figure, pd.DataFrame(
        [
            (line.get_marker(), float(line.get_xdata()[0]), int(line.get_ydata()[0]))
            for axes in figure.axes
            for line in axes.lines
            if len(line.get_xdata()) == 1 and np.isfinite(line.get_xdata()[0])
        ],
        columns=["marker", "x", "row"],
    )


def texts(figure):
    return [text.get_text() for text in figure.texts] + [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("count", [2, 4, 9])
@pytest.mark.parametrize(
    "draw",
    [
        lambda count: plots.arm_dots(ended(count), title="Gold reward", label="at the end", source="Author, table 2"),
        lambda count: plots.arm_dots(
            ended(count, scale=100), title="Gold", label="gold", published_label="win rate, %"
        ),
        lambda count: plots.claim_intervals(claimed(count), title="Claims", unit="difference of gold"),
        lambda count: plots.claim_intervals(claimed(count).assign(unit=["a", *"b" * (count - 1)]), title="Claims"),
        lambda count: plots.arm_profile(profile(count), title="Performance profile", note="4 tasks, 10 seeds each"),
    ],
    ids=["dots", "dots of two units", "claims", "claims of two units", "profile"],
)
def test_no_text_overlaps_another_or_leaves_the_figure(draw, count):
    assert overlapping_texts(draw(count)) == []


def test_dots_stand_in_the_order_of_the_table_beside_the_published_values():
    table = ended(4).iloc[::-1]
    figure, drawn = dots(plots.arm_dots(table, title="t", label="l", source="Author, table 2"))
    assert drawn[drawn["marker"] == "o"]["x"].tolist() == table["mean"].tolist()
    published = drawn[drawn["marker"] == "D"]
    assert dict(zip(published["row"], published["x"], strict=True)) == pytest.approx({0: 0.73, 2: 0.65, 3: 0.61})
    assert "◇: published (Author, table 2)" in figure.texts[1].get_text()
    (axes,) = figure.axes
    assert axes.get_xlim()[0] < 0.57
    assert axes.get_xlim()[1] > 0.75


def test_failed_runs_are_named_beside_their_arm():
    figure = plots.arm_dots(ended(3), title="t", label="l")
    assert [text for text in texts(figure) if "failed" in text] == ["× 2 of 10 failed"]
    assert "0.640 ± 0.030, n = 10" in texts(figure)
    without = plots.arm_dots(ended(3).drop(columns=["failed"]).assign(published=np.nan), title="t", label="l")
    assert not any("failed" in text or "published" in text for text in texts(without))


def test_published_values_of_another_unit_have_a_panel_of_their_own():
    figure = plots.arm_dots(ended(2, scale=100), title="t", label="gold", published_label="win rate, %")
    ours, theirs = figure.axes
    assert ours.get_xlim()[1] < 1
    assert theirs.get_xlim()[0] > 60
    assert {"gold", "win rate, %", "61.0", "65.0"} < set(texts(figure))


def test_an_arm_without_a_run_is_a_row_without_a_dot():
    table = ended(2)
    table.loc[1, ["mean", "low", "high"]] = np.nan
    figure, drawn = dots(plots.arm_dots(table, title="t", label="l"))
    assert drawn[drawn["marker"] == "o"]["row"].tolist() == [0]
    assert "no run" in texts(figure)


def test_claims_have_their_margin_shaded_and_their_verdict_beside_them():
    figure = plots.claim_intervals(claimed(3), title="t", note="Holm over 3 claims")
    (axes,) = figure.axes
    shaded = [box.get_paths()[0].get_extents() for box in axes.collections if "Poly" in type(box).__name__]
    assert [(box.x0, box.x1) for box in shaded] == [(-0.02, 0.02)] * 3
    assert {*VERDICTS, "−0.100 [−0.150, −0.050]"} < set(texts(figure))
    assert "Holm over 3 claims" in figure.texts[1].get_text()
    without = plots.claim_intervals(claimed(3).drop(columns=["margin"]), title="t")
    assert "shaded" not in without.texts[1].get_text()


def test_zero_is_in_view_of_claims_however_far_they_are():
    figure = plots.claim_intervals(claimed(1).assign(estimate=5.0, low=4.0, high=6.0, margin=np.nan), title="t")
    low, high = figure.axes[0].get_xlim()
    assert low < 0 < 6 < high


def test_a_profile_has_a_line_and_a_band_for_each_arm():
    table = profile(9)
    (axes,) = plots.arm_profile(table, title="t").axes
    assert len(axes.lines) == len(axes.collections) == 9
    for arm, line in zip(NAMES, axes.lines, strict=True):
        np.testing.assert_allclose(line.get_ydata(), table[table["arm"] == arm]["share"])
    assert len({(to_hex(line.get_color()), line.get_marker()) for line in axes.lines}) == 9
    assert to_hex(axes.lines[0].get_color()) == style.RUNS[0]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.arm_dots(ended(2).drop(columns=["n", "low"]), title="t", label="l"), "no column low, n"),
        (lambda: plots.claim_intervals(claimed(2)[:0], title="t"), "no row"),
        (lambda: plots.arm_profile(profile(1).drop(columns=["tau"]), title="t"), "no column tau"),
    ],
)
def test_a_table_that_lacks_something_says_what(draw, message):
    with pytest.raises(UserError, match=message):
        draw()
