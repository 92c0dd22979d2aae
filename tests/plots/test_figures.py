import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from rlhf_lightning import plots
from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import labels, panels, style
from rlhf_lightning.records.runs import load_run
from tests.plots.figure_text import overlapping_texts
from tests.plots.synthetic_runs import write_csv, write_pipeline, write_policy, write_reward, write_sft

OF_POLICIES = (
    plots.overoptimization,
    plots.dashboard,
    plots.components,
    plots.frontier,
    plots.learning_curves,
)
OF_ONE_RUN = (
    *OF_POLICIES,
    plots.reward_curve,
    plots.reward_accuracy,
    plots.reliability,
    plots.reward_biases,
    plots.annotator_agreement,
    plots.sft_curve,
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return load_run(write_pipeline(tmp_path_factory.mktemp("runs") / "quickstart"))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    courses = {"ppo": "healthy", "rloo": "exploited", "reinforce-with-value-baseline": "unstable"}
    return [load_run(write_policy(folder / name, course)) for name, course in courses.items()]


def colored_lines(axes, color):
    return [line for line in axes.lines if to_hex(line.get_color()) == color and len(line.get_xdata()) > 2]


@pytest.mark.parametrize("draw", OF_ONE_RUN)
def test_no_text_overlaps_another_or_leaves_the_figure(pipeline, draw):
    assert overlapping_texts(draw(pipeline)) == []


@pytest.mark.parametrize("draw", [plots.dashboard, plots.frontier, plots.learning_curves])
def test_no_text_of_several_runs_overlaps(several, draw):
    assert overlapping_texts(draw(several)) == []


@pytest.mark.parametrize("words", [1, 12, 40])
def test_a_long_heading_takes_more_lines_and_leaves_the_panels_as_they_are(words):
    figure, (axes,) = panels.sheet(1, columns=1, size=(4, 2), top=1.0, bottom=0.5)
    extra = labels.heading(figure, "rewards " * words, "explained at length " * words)
    height = figure.get_size_inches()[1]
    assert (extra > 0) == (words > 1)
    assert height == pytest.approx(3.5 + extra)  # 1 above, 2 of the panel, 0.5 below
    assert axes.get_position().height * height == pytest.approx(2)
    assert axes.get_position().y0 * height == pytest.approx(0.5)
    assert overlapping_texts(figure) == []


@pytest.mark.parametrize("draw", OF_ONE_RUN)
def test_a_figure_without_its_data_says_what_it_needs(tmp_path, draw):
    kind = write_reward if draw in OF_POLICIES or draw is plots.sft_curve else write_sft
    with pytest.raises(UserError, match="no "):
        draw(load_run(kind(tmp_path / "run")))


def test_overoptimization_draws_gains_over_iterations_and_over_kl(pipeline):
    policy = pipeline.find("policy")
    over_time, over_kl = plots.overoptimization(pipeline).axes
    for metric, color in (("eval/score", style.PROXY), ("eval/gold", style.GOLD)):
        values = policy.series(metric)
        (line,) = colored_lines(over_time, color)
        np.testing.assert_allclose(line.get_xdata(), values.index)
        np.testing.assert_allclose(line.get_ydata(), values - values.iloc[0])
        (line,) = colored_lines(over_kl, color)
        np.testing.assert_allclose(line.get_xdata(), policy.series("eval/kl_ref_sequence"))
    assert over_kl.get_xscale() == "function"


def test_proxy_and_gold_keep_their_colours_in_the_dashboard(pipeline):
    proxy, gold, *_ = plots.dashboard(pipeline).axes
    assert colored_lines(proxy, style.PROXY)
    assert colored_lines(gold, style.GOLD)
    assert not {style.PROXY, style.GOLD} & set(style.RUNS)


def test_a_run_has_the_same_colour_in_dashboard_and_frontier(several, tmp_path):
    without = load_run(write_policy(tmp_path / "no-gold", gold=False))
    runs = [without, *several]
    reward = plots.dashboard(runs).axes[0]
    gold = plots.frontier(runs).axes[0]
    for index, run in enumerate(runs):
        assert colored_lines(reward, style.RUNS[index])
        assert bool(colored_lines(gold, style.RUNS[index])) == (run is not without)


def test_a_quantity_that_no_run_logged_has_no_panel(tmp_path):
    (tmp_path / "a").mkdir()
    write_csv(tmp_path / "a" / "metrics.csv", {"iteration": np.arange(4.0), "objective/score": np.arange(4.0)})
    figure = plots.dashboard(load_run(tmp_path / "a"))
    assert len(figure.axes) == 1


def test_axes_of_quantities_without_sign_start_at_zero(pipeline):
    figure = plots.dashboard(pipeline)
    starts = {axes.texts[0].get_text(): axes.get_ylim()[0] for axes in figure.axes}
    starts |= {text.get_text(): axes.get_ylim()[0] for axes in figure.axes for text in axes.texts}
    for title in ("KL to the reference", "Entropy", "Clip fraction", "Reply length", "Gradient norm", "Value loss"):
        assert starts[title] == 0


def test_short_and_odd_runs_are_drawn(tmp_path):
    columns = {
        "iteration": [3.0, 4.0],
        "eval/score": [0.5, 0.5],
        "eval/gold": [0.1, 0.1],
        "eval/kl_ref_sequence": [-0.01, 0.0],
        "policy/ratio_max": [np.inf, 1.0],
    }
    (tmp_path / "a").mkdir()
    write_csv(tmp_path / "a" / "metrics.csv", {name: np.array(values) for name, values in columns.items()})
    run = load_run(tmp_path / "a")
    for draw in (plots.overoptimization, plots.dashboard, plots.frontier, plots.learning_curves):
        figure = draw(run)
        FigureCanvasAgg(figure).draw()
        assert any(axes.lines for axes in figure.axes)


def test_save_writes_both_formats_and_keeps_dots_of_a_name(pipeline, tmp_path):
    png, svg = plots.save(plots.sft_curve(pipeline), tmp_path / "deep" / "lr-0.1")
    assert (png.name, svg.name) == ("lr-0.1.png", "lr-0.1.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text(encoding="utf-8")


def test_the_same_figure_is_the_same_file(pipeline, tmp_path):
    one, two = (plots.save(plots.sft_curve(pipeline), tmp_path / name)[1] for name in ("a", "b"))
    assert one.read_bytes() == two.read_bytes()


def test_drawing_neither_reads_nor_changes_the_caller_s_settings(pipeline, tmp_path):
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        before = dict(mpl.rcParams)
        one = plots.save(plots.sft_curve(pipeline), tmp_path / "a")[1].read_bytes()
        assert dict(mpl.rcParams) == before
    assert plots.save(plots.sft_curve(pipeline), tmp_path / "b")[1].read_bytes() == one


def test_figures_need_neither_torch_nor_a_display():
    code = "import sys, rlhf_lightning.plots; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
