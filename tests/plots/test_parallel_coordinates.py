"""The figure of a sweep's trials."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.figures.parallel_coordinates import Axis, parallel_coordinates
from rlhf_lightning.plots.kit.style import GOLD

AXES = [Axis("lr", log=True), Axis("loss", choices=("Clip", "Penalty"), title="surrogate")]
TRIALS = pd.DataFrame(
    {
        "state": ["complete", "given up", "complete", "failed"],
        "lr": [1e-4, 1e-2, 1e-3, 1e-3],
        "loss": ["Clip", "Penalty", "Penalty", "Clip"],
        "eval/gold": [1.0, 3.0, 2.0, None],
    }
)


def lines(figure):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, PathPatch)]


def heights(line):
    """Where a line crosses the axes: the ends of its curves."""
    return [float(y) for _, y in line.get_path().vertices[::3]]


@pytest.mark.parametrize(("maximize", "best"), [(True, 2), (False, 0)])
def test_each_trial_with_a_value_is_a_line_and_the_best_complete_one_is_gold(maximize, best):
    figure = parallel_coordinates(TRIALS, AXES, "eval/gold", maximize=maximize, name="s")
    drawn = lines(figure)
    assert len(drawn) == 3
    gold = [line for line in drawn if to_hex(line.get_edgecolor()) == GOLD]
    expected = {0: [0.04, 0.04, 0.04], 2: [0.5, 0.96, 0.5]}[best]  # 1e-3 is half way on a logarithmic scale
    assert [heights(line) for line in gold] == [pytest.approx(expected)]
    assert sum(line.get_linestyle() != "solid" for line in drawn) == 1  # the one that was given up


def test_axes_are_named_and_ticked():
    figure = parallel_coordinates(TRIALS, AXES, "eval/gold", maximize=True, name="s", title="Title")
    texts = [text.get_text() for text in figure.axes[0].texts] + [text.get_text() for text in figure.texts]
    for expected in ("lr", "surrogate", "Clip", "Penalty", "0.001", "Title"):
        assert expected in texts
    assert any("3 trials of s" in text and "1 given up early" in text for text in texts)


def test_a_parameter_that_never_varied_lies_in_the_middle():
    table = TRIALS.assign(lr=1e-3)
    assert {
        heights(line)[0] for line in lines(parallel_coordinates(table, AXES, "eval/gold", maximize=True, name="s"))
    } == {0.5}


def test_nothing_to_draw_is_one_line():
    with pytest.raises(UserError, match="no trial has a value yet"):
        parallel_coordinates(TRIALS.iloc[3:], AXES, "eval/gold", maximize=True, name="s")
