import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex

from rlhf_lightning import plots
from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.figures.pareto import front
from rlhf_lightning.plots.kit import style
from rlhf_lightning.records.runs import load_run
from tests.plots.figure_text import overlapping_texts
from tests.plots.synthetic_runs import finish, write_csv, write_policy

START = (0.57, -0.14)
DECLARED = "data: {{init_args: {{weights: {{class_path: DeclaredWeights, init_args: {{weights: {}}}}}}}}}\n"
FLOORS = """\
data:
  init_args: {weights: {class_path: Lagrangian, init_args: {maximize: helpful, floors: {concise: -0.05, harmless: 0}}}}
"""
ENDS = {0: (0.86, -0.12), 0.5: (0.84, -0.057), 1: (0.83, -0.04), 4: (0.75, -0.023), 16: (0.65, -0.01), 64: (0.6, -0.03)}
"""Helpful and concise at the end, by the weight of concise; the last is beaten in both."""


def write_end(path, place, config="", *, shade=0.1, kind="gold"):
    path.mkdir(parents=True)
    helpful, concise = ([start, (start + end) / 2, end] for start, end in zip(START, place, strict=True))
    columns = {"iteration": [0.0, 5.0, 10.0], "objective/score": [np.nan, 1.0, 1.0]}
    columns |= {f"eval/{kind}_helpful": helpful, f"eval/{kind}_concise": concise}
    if shade is not None:
        columns[f"eval/{kind}_harmless"] = [0.0, shade / 2, shade]
    write_csv(path / "metrics.csv", {name: np.array(values) for name, values in columns.items()})
    finish(path, config=config)
    return load_run(path)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    runs = [
        write_end(
            *(folder / f"w{weight}", place, DECLARED.format(f"{{helpful: 1.0, concise: {weight}, harmless: 2}}")),
            shade=0.05 * index,
        )
        for index, (weight, place) in enumerate(ENDS.items())
    ]
    return [*runs, write_end(folder / "held", (0.835, -0.045), FLOORS, shade=0.16)]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def markers(axes, marker):
    return [line for line in axes.lines if line.get_marker() == marker]


def test_the_front_is_what_pairwise_comparison_leaves():
    generator = np.random.default_rng(0)
    for _ in range(20):
        places = [tuple(place) for place in generator.integers(0, 6, size=(9, 2)).tolist()]
        beaten = {
            one
            for one, other in itertools.permutations(range(9), 2)
            if all(a <= b for a, b in zip(places[one], places[other], strict=True)) and places[one] != places[other]
        }
        found = front(places)
        assert sorted(found) == sorted(set(range(9)) - beaten)
        assert [places[i][0] for i in found] == sorted(places[i][0] for i in found)


def test_points_stand_where_the_runs_ended_and_the_start_is_marked(sweep):
    axes = plots.pareto(sweep).axes[0]
    drawn = {(line.get_xdata()[0], line.get_ydata()[0]) for line in markers(axes, "o")}
    assert drawn == {*ENDS.values(), (0.835, -0.045)}
    (start,) = markers(axes, "X")
    assert (start.get_xdata()[0], start.get_ydata()[0]) == START


def test_only_the_front_is_filled_and_under_the_staircase(sweep):
    axes = plots.pareto(sweep).axes[0]
    hollow = {line.get_xdata()[0] for line in markers(axes, "o") if to_hex(line.get_markerfacecolor()) == style.PAPER}
    assert hollow == {0.6}
    (stairs,) = [line for line in axes.lines if line.get_drawstyle() == "steps-pre"]
    corners = list(zip(stairs.get_xdata(), stairs.get_ydata(), strict=True))
    best = sorted(place for place in [*ENDS.values(), (0.835, -0.045)] if place != ENDS[64])
    assert corners == [(axes.get_xlim()[0], best[0][1]), *best, (best[-1][0], axes.get_ylim()[0])]


def test_points_are_labelled_by_the_weights_that_differ_or_by_the_floors(sweep):
    figure = plots.pareto(sweep)
    assert {f"{weight:g}" for weight in ENDS} < set(texts(figure))
    assert "concise ≥ −0.05, harmless ≥ 0" in texts(figure)
    assert "before training" in texts(figure)
    note = figure.texts[1].get_text().replace("\n", " ")
    assert "labels: weights of concise · all with helpful\u00a01, harmless\u00a02" in note


def test_where_several_weights_differ_all_of_them_are_in_the_label(tmp_path):
    declared = ("{helpful: 1, concise: 0.5}", "{helpful: 2, concise: 0.25}", "{concise: -1}")
    runs = [write_end(tmp_path / f"{i}", (0.7 - i / 10, i / 10), DECLARED.format(w)) for i, w in enumerate(declared)]
    figure = plots.pareto([*runs, write_end(tmp_path / "named", (0.6, -0.12))])
    assert {"1 : 0.5", "2 : 0.25", "– : −1", "named"} < set(texts(figure))
    assert "weights of helpful : concise ·" in figure.texts[1].get_text().replace("\n", " ")


def test_the_third_objective_is_the_colour_unless_it_is_missing(sweep, tmp_path):
    figure = plots.pareto(sweep)
    assert len(figure.axes) == 2
    assert figure.axes[1].get_title(loc="left") == "harmless"
    colors = {to_hex(line.get_markeredgecolor()) for line in markers(figure.axes[0], "o")}
    assert len(colors) == len(sweep)
    plain = plots.pareto(sweep, color=None)
    without = plots.pareto([*sweep, write_end(tmp_path / "a", (0.7, -0.1), shade=None)])
    for other in (plain, without):
        assert len(other.axes) == 1
        assert {to_hex(line.get_markeredgecolor()) for line in markers(other.axes[0], "o")} == {style.PLAIN}


@pytest.mark.parametrize("count", [1, 2, 7])
def test_no_text_overlaps_another_or_leaves_the_figure(sweep, count):
    assert overlapping_texts(plots.pareto(sweep[-count:])) == []


def test_runs_that_end_at_the_same_place_are_drawn(tmp_path):
    runs = [write_end(tmp_path / name, START, shade=0.0) for name in ("one", "two")]
    figure = plots.pareto(runs)
    assert overlapping_texts(figure) == []
    assert {"one", "two"} < set(texts(figure))


def test_scores_of_the_reward_serve_where_gold_has_no_parts(tmp_path):
    figure = plots.pareto(write_end(tmp_path / "run", (0.7, -0.1), kind="score"))
    (point,) = markers(figure.axes[0], "o")
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (0.7, -0.1)
    assert any(text.get_text().startswith("Objectives on") for text in figure.texts)


def test_runs_without_the_objectives_are_named_and_none_is_an_error(sweep, tmp_path):
    without = load_run(write_policy(tmp_path / "no-gold", gold=False))
    noted = plots.pareto([*sweep, without])
    assert any("without these objectives: no-gold" in text.get_text().replace("\n", " ") for text in noted.texts)
    with pytest.raises(UserError, match="no policy run in which the objectives helpful and concise were evaluated"):
        plots.pareto(without)
