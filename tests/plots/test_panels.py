import itertools

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from rlhf_lightning.plots.kit import labels, panels, style
from rlhf_lightning.plots.kit.style import fixed, number, span


def test_a_line_never_goes_back_along_the_axis():
    by_kl = pd.Series([0.0, 1.0, 2.0, 3.0, 4.0], index=[0.0, 5.0, 3.0, 5.0, 9.0])
    axes = Figure().add_subplot()
    panels.points(axes, by_kl, style.GOLD)
    dots, line = axes.lines
    assert (dots.get_linestyle(), list(dots.get_xdata())) == ("None", [0, 5, 3, 5, 9])
    assert (line.get_linestyle(), list(line.get_xdata()), list(line.get_ydata())) == ("-", [0, 5, 5, 9], [0, 1, 3, 4])
    assert "larger before" in panels.apart([by_kl])
    assert panels.apart([by_kl.sort_index()]) == ""


@given(st.lists(st.floats(-50, 250), min_size=1, max_size=7))
def test_spread_leaves_no_overlap_and_keeps_the_order(centres):
    sizes = [25.0] * len(centres)
    placed = labels.spread(centres, sizes, 200.0)
    order = sorted(range(len(centres)), key=lambda index: centres[index])
    for below, above in itertools.pairwise(order):
        assert placed[above] - placed[below] >= 25.0 - 1e-6
    assert all(12.5 - 1e-6 <= place <= 187.5 + 1e-6 for place in placed)


def test_spread_moves_nothing_that_has_room():
    assert labels.spread([20.0, 90.0, 50.0], [20.0] * 3, 100.0) == [20.0, 90.0, 50.0]


def test_spread_moves_a_touching_pair_apart_evenly():
    assert labels.spread([50.0, 54.0], [20.0, 20.0], 200.0) == [42.0, 62.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.614, "0.61"),
        (-0.614, "−0.61"),
        (0, "0.00"),
        (-1e-12, "0.00"),
        (0.0341, "0.034"),
        (12.34, "12.3"),
        (456.7, "457"),
        (12345.6, "12,346"),
        (float("inf"), "∞"),
        (float("nan"), "–"),
        (None, "–"),
    ],
)
def test_number_reads_at_a_meaningful_precision(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [
        (0.073, 1.44, "0.07 → 1.44"),
        (0.61, -2.6, "0.61 → −2.60"),
        (0.02, 42.0, "0.0 → 42.0"),
        (0.0104, 0.034, "0.010 → 0.034"),
        (126.3, 1.83, "126 → 1.83"),
    ],
)
def test_span_has_one_precision(first, last, text):
    assert span(first, last) == text


def test_fixed_writes_no_negative_zero():
    assert [fixed(value) for value in (-0.001, -0.01, None)] == ["0.00", "−0.01", "–"]


def test_a_floor_is_the_axis_s_start_unless_a_value_is_lower():
    _, (axes, other) = panels.sheet(2, columns=2, size=(1, 1))
    panels.limits(axes, [pd.Series([0.2, 1.0])], floor=0)
    assert axes.get_ylim()[0] == 0
    panels.limits(other, [pd.Series([-0.2, 1.0])], floor=0)
    assert other.get_ylim()[0] < -0.2


def test_a_cut_view_says_so():
    _, (axes,) = panels.sheet(1, columns=1, size=(2, 1))
    panels.limits(axes, [pd.Series([-30.0, 0.9])], lowest=-1)
    assert axes.get_ylim()[0] == pytest.approx(-1.152)  # −1 less 8 % of the range −1 … 0.9
    assert [text.get_text() for text in axes.texts] == ["view cut at −1"]


def test_against_pairs_values_by_iteration():
    values = pd.Series([1.0, 2.0, 3.0], index=[0, 10, 20])
    kl = pd.Series([-0.1, 4.0], index=[0, 20])
    assert panels.against(values, kl).to_dict() == {0.0: 1.0, 4.0: 3.0}
