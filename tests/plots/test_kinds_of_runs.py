"""Figures of control tasks, of preference optimizers, and of runs of several kinds side by side."""

import functools

import numpy as np
import pytest
from matplotlib.colors import to_hex

from rlhf_lightning import plots
from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import style
from rlhf_lightning.plots.measures import experience, families
from rlhf_lightning.records.metrics import Description, Experience, Metric
from rlhf_lightning.records.runs import load_run
from tests.plots.figure_text import overlapping_texts, panel_titles
from tests.plots.synthetic_kinds import write_control, write_preference
from tests.plots.synthetic_runs import finish, write_csv, write_policy


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run of each kind, by name, and some that differ from it in one thing."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        run.name: run
        for run in map(
            load_run,
            (
                write_control(folder / "trpo"),
                write_control(folder / "trpo-small-batches", batch=256, iterations=200, every=40),
                write_control(folder / "acrobot", environment="Acrobot-v1", best=-80.0),
                write_preference(folder / "dpo"),
                write_preference(folder / "unlikelihood", group="unlikelihood", fall=True),
                write_preference(folder / "dpo-without-gold", gold=False),
                write_policy(folder / "ppo", iterations=60),
                write_policy(folder / "on-gold", "healthy", on_gold=True, iterations=60),
                write_policy(folder / "larger-batches", "healthy", on_gold=True, iterations=60, batch=256),
                write_policy(folder / "no-gold-and-a-name-that-is-so-long-that-it-fits-on-no-line", gold=False),
            ),
        )
    }


@pytest.fixture(scope="module")
def dashboard(runs):
    """Draws the dashboard of the runs with these names, each once."""

    @functools.cache
    def draw(*names, family=None):
        return plots.dashboard([runs[name] for name in names], family=family)

    return draw


MIXTURES = {
    "control": ("trpo", "trpo-small-batches", "acrobot"),
    "one preference run": ("dpo",),
    "preferences beside text": ("dpo", "unlikelihood", "ppo", "on-gold"),
    "no gold": ("no-gold-and-a-name-that-is-so-long-that-it-fits-on-no-line",),
}


def place_of(figure, title):
    """The panel with that title."""
    return next(axes for axes in figure.axes if axes.texts and title in [text.get_text() for text in axes.texts])


def lines(axes):
    return [line for line in axes.lines if len(line.get_xdata()) > 2]


@pytest.mark.parametrize("mixture", MIXTURES)
def test_no_text_overlaps_or_leaves_the_figure_whatever_the_kinds(runs, dashboard, mixture):
    chosen = [runs[name] for name in MIXTURES[mixture]]
    figures = [plots.learning_curves(chosen)]
    figures += [dashboard(*MIXTURES[mixture], family=family) for family in families(chosen)]
    if any(run.kind != "control" for run in chosen):
        figures.append(plots.frontier(chosen))
    for figure in figures:
        assert overlapping_texts(figure) == []


@pytest.mark.parametrize(
    "name", ["trpo", "dpo", "on-gold", "no-gold-and-a-name-that-is-so-long-that-it-fits-on-no-line"]
)
def test_there_is_no_overoptimization_without_a_proxy_and_gold(runs, name):
    with pytest.raises(UserError, match="no policy run with a gold reward and another"):
        plots.overoptimization(runs[name])


def test_control_is_drawn_over_environment_steps(runs, dashboard):
    returns = place_of(dashboard("trpo"), "Return")
    (line,) = [line for line in lines(returns) if line.get_marker() == "o"]
    np.testing.assert_allclose(line.get_xdata(), 2048 * np.array([0, 10, 20, 30, 40, 48]))
    np.testing.assert_allclose(line.get_ydata(), runs["trpo"].series("eval/score"))
    figure = plots.learning_curves([runs["trpo"], runs["trpo-small-batches"]])
    (axes,) = figure.axes
    assert axes.get_xlabel() == "environment steps"
    ends = [line.get_xdata()[-1] for line in lines(axes)]
    assert ends == [48 * 2048, 200 * 256]


def test_words_of_control_are_not_those_of_text(dashboard):
    figure = dashboard("trpo")
    assert {"Return", "Episode length", "KL of the step", "Rejected steps"} <= panel_titles(figure)
    words = " ".join(text.get_text() for text in figure.findobj(match=is_text)).lower()
    for word in ("proxy", "gold", "reply", "tokens", "prompts"):
        assert word not in words


def is_text(artist):
    return hasattr(artist, "get_text") and bool(artist.get_text())


def test_the_trust_region_panel_shows_its_limit(dashboard, tmp_path):
    panel = place_of(dashboard("trpo"), "KL of the step")
    assert "δ = 0.01" in [text.get_text() for text in panel.texts]
    assert [line.get_ydata()[0] for line in panel.lines if line.get_linestyle() == "--"] == [0.01]
    fixed = load_run(write_control(tmp_path / "npg", bounded=False))
    panel = place_of(plots.dashboard(fixed), "KL of the step")
    assert not [text for text in panel.texts if "δ =" in text.get_text()]


def test_steps_of_the_line_search_are_drawn_as_they_are(dashboard):
    figure = dashboard("trpo")
    (line,) = lines(place_of(figure, "Length of the step"))
    expected = np.ones(48)
    expected[[6, 19]], expected[11] = 0.0, 0.5  # iterations 7 and 20 were rejected, 12 was halved
    np.testing.assert_allclose(line.get_ydata(), expected)
    (line,) = lines(place_of(figure, "Rejected steps"))
    assert (line.get_ydata()[5], line.get_ydata()[6], line.get_ydata()[-1]) == (0, 1, 2)
    improvement = place_of(figure, "Improvement")
    thin = next(line for line in lines(improvement) if line.get_linewidth() < 1)
    assert set(np.round(thin.get_ydata(), 6)) == {0.0, 0.9}  # 0.018 / 0.02, and 0 where rejected
    assert "Step size" not in panel_titles(figure)


def test_an_environment_has_a_panel_and_a_dashboard_of_its_own(runs):
    chosen = [runs["trpo"], runs["acrobot"]]
    first, second = plots.learning_curves(chosen).axes
    assert first.get_ylim() != second.get_ylim()
    assert families(chosen) == ["CartPole-v1", "Acrobot-v1"]
    with pytest.raises(UserError, match=r"one family, got CartPole-v1, Acrobot-v1; name one of them"):
        plots.dashboard(chosen)
    acrobot = place_of(plots.dashboard(chosen, family="Acrobot-v1"), "Return")
    assert max(line.get_ydata().max() for line in lines(acrobot)) < 0


def test_pairs_and_samples_are_not_counted_as_one(runs):
    figure = plots.learning_curves([runs["dpo"], runs["ppo"]])
    pairs, responses = figure.axes
    assert (pairs.get_xlabel(), responses.get_xlabel()) == ("preference pairs", "sampled responses")
    assert pairs.get_ylim() == responses.get_ylim()
    (line,) = lines(pairs)
    np.testing.assert_allclose(line.get_xdata(), 64 * np.array([0, 100, 200, 300, 400, 500]))
    (line,) = lines(responses)
    assert line.get_xdata()[-1] == 60 * 64


def test_experience_before_the_first_count_is_none(runs):
    along = experience(runs["trpo"])
    assert (along.count[0], along.count[1]) == (0, 2048)
    assert experience(runs["dpo"]).count[10] == 640


def test_experience_of_a_run_that_does_not_count_it_is_its_axis(tmp_path):
    (tmp_path / "a").mkdir()
    write_csv(tmp_path / "a" / "metrics.csv", {"step": np.arange(3.0), "dpo/loss": np.ones(3), "eval/gold": np.ones(3)})
    along = experience(load_run(tmp_path / "a"))
    assert (along.unit, along.count.to_list()) == ("step", [0, 1, 2])


def test_batches_of_different_sizes_are_drawn_over_samples(dashboard):
    assert dashboard("on-gold", "larger-batches").axes[-1].get_xlabel() == "sampled responses"
    assert dashboard("on-gold", "ppo").axes[-1].get_xlabel() == "iteration"


def test_a_reward_is_a_proxy_only_beside_gold(dashboard):
    assert "Proxy reward" in panel_titles(dashboard("ppo"))
    on_gold = panel_titles(dashboard("on-gold"))
    assert "Gold reward" in on_gold
    assert not {"Proxy reward", "Reward"} & on_gold
    without = panel_titles(dashboard("no-gold-and-a-name-that-is-so-long-that-it-fits-on-no-line"))
    assert "Reward" in without
    assert not {"Proxy reward", "Gold reward"} & without
    both = panel_titles(dashboard("ppo", "on-gold"))
    assert {"Proxy reward", "Gold reward"} <= both


def test_preference_runs_have_their_own_panels_and_share_no_loss(dashboard):
    titles = panel_titles(dashboard("dpo"))
    assert {"Loss", "Accuracy", "Margin", "Reward of the chosen", "Reward of the rejected"} <= titles
    figure = dashboard("dpo", "unlikelihood")
    for title in ("Loss of DPO", "Loss of Unlikelihood"):
        assert len(lines(place_of(figure, title))) == 1


def own_run(path, **columns):
    """A run of a user's own algorithm, which declares its surprise in training and logs more than that."""
    path.mkdir()
    surprise = Metric("Surprise", "nats", "mine/surprise", own=True)
    description = Description("policy", "Mine", Experience("sampled responses", counter="samples"), (surprise,))
    steps = np.arange(4.0)
    logged = {"mine/surprise": steps, "mine/tilt": 2 * steps, "eval/tilt": 3 * steps, "samples": 8 * steps}
    times = {"timing/update_seconds": steps, "rollout/tokens_per_second": steps, "lr": steps}
    write_csv(path / "metrics.csv", {"iteration": steps, **logged, **times, **columns})
    finish(path, config="task: {class_path: Assistant}\n", description=description)
    return load_run(path)


def test_what_a_run_only_logs_has_a_panel_after_what_it_declares(tmp_path):
    run = own_run(tmp_path / "mine")
    figure = plots.dashboard(run)
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["Surprise", "Tilt"]
    assert "mine/tilt" in [text.get_text() for text in place_of(figure, "Tilt").texts]
    trained, evaluated = lines(place_of(figure, "Tilt"))
    np.testing.assert_allclose(trained.get_ydata(), [0, 2, 4, 6])
    np.testing.assert_allclose(evaluated.get_ydata(), [0, 3, 6, 9])
    assert experience(run).count.to_list() == [0, 8, 16, 24]


def test_a_run_without_a_metric_is_left_out_of_its_panel(tmp_path):
    mine = own_run(tmp_path / "mine", **{"policy/clip_fraction": np.arange(4.0)})
    ppo = load_run(write_policy(tmp_path / "ppo", iterations=60))
    figure = plots.dashboard([mine, ppo])
    for title, runs in {"Surprise of Mine": {0}, "Tilt": {0}, "Entropy": {1}, "Clip fraction": {0, 1}}.items():
        colors = {to_hex(line.get_color()) for line in lines(place_of(figure, title))}
        assert colors == {style.RUNS[index] for index in runs}
    texts = [text.get_text() for text in place_of(figure, "Clip fraction").texts]
    assert "share of actions at the clip" in texts  # as the run that declares it says


@pytest.mark.parametrize(("write", "kind"), [(write_policy, "policy"), (write_control, "control")])
def test_a_run_of_the_version_before_tells_by_its_columns(tmp_path, write, kind):
    path = write(tmp_path / "old", iterations=20)
    described = load_run(path)
    (path / "run.json").unlink()
    old = load_run(path)
    assert old.kind == described.kind == kind
    assert old.algorithm == described.algorithm
    np.testing.assert_allclose(experience(old).count, experience(described).count)
    figure = plots.dashboard(old)
    assert {"Grad norm", "Entropy", "Score", "Length mean"} <= panel_titles(figure)
    assert overlapping_texts(figure) == []


def test_an_old_run_and_a_new_one_share_their_panels(tmp_path):
    paths = [write_policy(tmp_path / name, iterations=20) for name in ("old", "new")]
    (paths[0] / "run.json").unlink()
    figure = plots.dashboard([load_run(path) for path in paths])
    for title in ("Proxy reward", "KL to the reference", "Entropy", "Gradient norm"):
        colors = {to_hex(line.get_color()) for line in lines(place_of(figure, title))}
        assert colors == set(style.RUNS[:2])


def test_a_run_keeps_its_colour_where_others_have_another_kind(runs):
    chosen = [runs["trpo"], runs["on-gold"], runs["dpo"], runs["larger-batches"]]
    gold = place_of(plots.dashboard(chosen, family="Assistant"), "Gold reward")
    assert {to_hex(line.get_color()) for line in lines(gold)} == {style.RUNS[1], style.RUNS[3]}
    responses, _ = plots.learning_curves(chosen[1:]).axes
    assert {to_hex(line.get_color()) for line in lines(responses)} == {style.RUNS[0], style.RUNS[2]}


def test_the_curve_of_one_run_has_the_colour_of_its_reward(runs):
    (axes,) = plots.learning_curves(runs["trpo"]).axes
    assert [to_hex(line.get_color()) for line in lines(axes) if line.get_marker() == "o"] == [style.PROXY]
    assert {"evaluation", "training"} <= {text.get_text() for text in axes.texts}
    (axes,) = plots.learning_curves(runs["on-gold"]).axes
    assert style.GOLD in [to_hex(line.get_color()) for line in lines(axes)]


def test_runs_without_two_evaluations_are_named_and_not_drawn(runs, tmp_path):
    young = load_run(write_control(tmp_path / "young", iterations=1, every=10))
    young.metrics = young.metrics[:1]
    figure = plots.learning_curves([runs["trpo"], young])
    assert "fewer than two: young" in " ".join(text.get_text() for text in figure.texts)
    with pytest.raises(UserError, match="no policy run with two evaluations"):
        plots.learning_curves(young)
