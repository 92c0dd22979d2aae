"""What the figures of a reward model's evaluation show, read back from what is drawn."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from rlhf_lightning import plots
from rlhf_lightning.errors import UserError
from rlhf_lightning.plots.kit import style
from rlhf_lightning.plots.quantities import objectives, quantities
from rlhf_lightning.plots.verdict import describe_reward
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.records.runs import Run
from tests.plots.descriptions import of_text
from tests.plots.figure_text import overlapping_texts, panel_titles
from tests.plots.synthetic_evaluation import bins, evaluation, rows

FIGURES = (plots.reward_accuracy, plots.reliability, plots.reward_biases, plots.annotator_agreement)


def reward_run(tmp_path, measured=None, name="reward", **parts):
    metrics = pd.DataFrame({"step": [0, 100], "reward_model/loss": [0.7, 0.6], "eval/accuracy": [0.5, 0.661]})
    return Run(tmp_path / name, name, metrics, evaluation=evaluation(**parts) if measured is None else measured)


def texts(figure):
    return [text.get_text() for text in [*figure.texts, *(t for axes in figure.axes for t in axes.texts)]]


def panel(figure, title):
    return next(axes for axes in figure.axes if title in {text.get_text() for text in axes.texts})


def dots(axes):
    """Places of the dots, and the ends of their intervals, by row."""
    places = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o"]
    spans = [segment for lines in axes.collections for segment in lines.get_segments()]
    return {round(y): (x, *(float(end) for end in span[:, 0])) for (x, y), span in zip(places, spans, strict=True)}


# -- accuracy --------------------------------------------------------------------------------------------------


def test_accuracy_has_a_row_for_each_group_with_its_interval(tmp_path):
    run = reward_run(tmp_path)
    axes = panel(plots.reward_accuracy(run), "By annotator")
    expected = run.evaluation["by_annotator"]
    assert dots(axes) == {
        row: pytest.approx((one["accuracy"], one["low"], one["high"])) for row, one in enumerate(expected)
    }
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top
    assert {"ana", "bo", "careless annotator", "71 % of 410"} <= {text.get_text() for text in axes.texts}


def test_accuracy_draws_level_and_ceiling_in_every_panel(tmp_path):
    figure = plots.reward_accuracy(reward_run(tmp_path, ceiling=0.712))
    for axes in figure.axes:
        levels = {to_hex(line.get_color()): line.get_xdata()[0] for line in axes.lines if line.get_marker() == "None"}
        assert levels == {style.AXIS: 0.5, style.INK: 0.661, style.GOLD: 0.712}
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_accuracy_of_members_has_wilson_intervals_and_says_how_far_they_agree(tmp_path):
    axes = panel(plots.reward_accuracy(reward_run(tmp_path, members=2)), "By member of the ensemble")
    value, low, high = dots(axes)[0]
    # 0.64 of 995 with z = 1.96: (0.64 + 1.9208/995 ∓ 1.96 √(0.64 · 0.36/995 + 0.9604/995²)) / (1 + 3.8415/995)
    assert (value, low, high) == pytest.approx((0.64, 0.60970, 0.66923), abs=2e-5)
    assert "two of them agree on 83 % of the pairs; scores differ by 0.41" in {text.get_text() for text in axes.texts}


def test_accuracy_leaves_out_what_says_nothing_beside_the_whole(tmp_path):
    measured = evaluation(members=0, annotators=False) | {"by_objective": rows(helpful=(0.66, 995))}
    shown = panel_titles(plots.reward_accuracy(reward_run(tmp_path, measured)))
    assert shown - {""} == {"By margin", "By length"}
    alone = {key: value for key, value in measured.items() if not key.startswith("by_")}
    with pytest.raises(UserError, match="no reward model's run with an accuracy by groups"):
        plots.reward_accuracy(reward_run(tmp_path, alone))


def test_accuracy_shows_the_annotators_with_the_most_pairs_in_their_order(tmp_path):
    many = rows(**{f"a{number:02d}": (0.6, 100 + number) for number in range(15)})
    axes = panel(plots.reward_accuracy(reward_run(tmp_path, evaluation() | {"by_annotator": many})), "By annotator")
    shown = [text.get_text() for text in axes.texts if text.get_text().startswith("a")]
    assert shown == [f"a{number:02d}" for number in range(3, 15)]
    assert "12 of 15, those with the most pairs" in {text.get_text() for text in axes.texts}


def test_ratings_have_no_accuracy_to_draw(tmp_path):
    by_objective = [{"name": name, "mean_squared_error": 0.2, "correlation": None, "count": 9} for name in "ab"]
    measured = {"ratings": 18, "loss": 0.2, "correlation": {"pearson": 0.7}, "by_objective": by_objective}
    run = reward_run(tmp_path, measured)
    run.metrics = run.metrics.drop(columns="eval/accuracy")
    for draw in FIGURES:
        with pytest.raises(UserError, match="no reward model's run with"):
            draw(run)
    assert describe_reward(run) == ["The reward model's scores correlate with 18 held-out ratings at 0.70."]


# -- calibration -----------------------------------------------------------------------------------------------


def test_reliability_draws_before_and_after_scaling(tmp_path):
    measured = evaluation()
    figure = plots.reliability(reward_run(tmp_path, measured))
    main = figure.axes[0]
    drawn = {
        (to_hex(line.get_markerfacecolor()), to_hex(line.get_markeredgecolor())): line.get_xydata()
        for line in main.lines
        if line.get_marker() == "o"
    }
    hollow, filled = drawn[style.PAPER, style.TRAIN], drawn[style.HELD_OUT, style.PAPER]
    for found, key in ((hollow, "bins"), (filled, "bins_scaled")):
        assert found == pytest.approx(np.array([[one["confidence"], one["accuracy"]] for one in measured[key]]))


def test_reliability_says_both_errors_and_the_temperature(tmp_path):
    measured = evaluation() | {"calibration_error": 0.0614, "calibration_error_scaled": 0.0187, "temperature": 1.42}
    title, note = (text.get_text() for text in plots.reliability(reward_run(tmp_path, measured)).texts)
    said = "Stated probabilities are off by 6.1 points on average, by 1.9 after temperature scaling"
    assert title.replace("\n", " ") == said
    assert "995 held-out pairs · expected calibration error 0.061 → 0.019 at T = 1.42" in note.replace("\n", " ")


def test_reliability_of_what_could_not_be_scaled_shows_what_is_stated(tmp_path):
    measured = evaluation(ceiling=None) | {"bins_scaled": [], "calibration_error_scaled": None, "temperature": None}
    measured["bins"] = bins([3, 0, 2, 0, 0, 0, 0, 0, 0, 1], 0.2)
    figure = plots.reliability(reward_run(tmp_path, measured))
    (line,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert line.get_xdata() == pytest.approx([0.525, 0.625, 0.975])  # a bin without pairs is no dot
    assert figure.texts[0].get_text().endswith("on average")
    assert "scaled" not in texts(figure)


# -- biases ----------------------------------------------------------------------------------------------------


def test_biases_are_drawn_with_their_intervals(tmp_path):
    figure = plots.reward_biases(reward_run(tmp_path))
    # 0.34 ∓ 1.96 · 0.04 and −0.05 ∓ 1.96 · 0.04
    expected = {0: (0.34, 0.2616, 0.4184), 1: (-0.05, -0.1284, 0.0284)}
    assert dots(figure.axes[0]) == {row: pytest.approx(values, abs=1e-4) for row, values in expected.items()}
    assert "+0.34; up in 81 % of 256" in texts(figure)
    assert figure.texts[0].get_text() == "Biases: length +0.34"


@pytest.mark.parametrize(
    ("change", "error", "clear"),
    [(0.34, 0.04, True), (-0.34, 0.04, True), (0.34, 0.2, False), (0.09, 0.001, False), (0.5, None, False)],
)
def test_a_bias_is_clear_beyond_its_interval_and_a_tenth_of_a_deviation(tmp_path, change, error, clear):
    row = {"name": "length", "change": change, "standard_error": error, "share_up": 0.5, "count": 9}
    run = reward_run(tmp_path, evaluation() | {"biases": [row]})
    assert (plots.reward_biases(run).texts[0].get_text() == "No clear bias") is not clear
    said = [sentence for sentence in describe_reward(run) if "is only longer" in sentence]
    direction = "higher" if change > 0 else "lower"
    assert said == [f"A reply that is only longer scores 0.34 standard deviations {direction}."] * clear


# -- annotators ------------------------------------------------------------------------------------------------


def test_agreement_has_a_cell_for_each_two_annotators_who_share_pairs(tmp_path):
    figure = plots.annotator_agreement(reward_run(tmp_path))
    (axes,) = figure.axes
    assert figure.texts[0].get_text() == "Agreement of annotators: Fleiss' κ 0.21"
    cells = {
        text.get_text(): (int(text.get_position()[0]), int(text.get_position()[1]))
        for text in axes.texts
        if text.get_weight() == "bold" and text.get_text()
    }
    # columns ana, bo from the left; rows bo, careless-annotator from the top
    assert cells == {"0.46": (0, 0), "0.08": (0, 1), "−0.07": (1, 1)}
    colors = [to_hex(cell.get_facecolor()) for cell in axes.patches]
    assert colors == [style.HELD_OUT, style.HELD_OUT, style.WARN]


def test_agreement_on_few_pairs_is_grey_and_no_headline(tmp_path):
    few = {"first": "ana", "second": "bo", "kappa": -0.2, "count": 8}
    enough = {"first": "bo", "second": "cy", "kappa": -0.2, "count": 30}
    agreement = {"fleiss_kappa": -0.2, "items": 8, "cohen_kappa": [few, enough]}
    figure = plots.annotator_agreement(reward_run(tmp_path, evaluation() | {"annotator_agreement": agreement}))
    assert [to_hex(cell.get_facecolor()) for cell in figure.axes[0].patches] == [style.MUTED, style.WARN]
    assert figure.texts[0].get_text() == "Agreement of annotators"
    assert "grey: fewer than 30 pairs" in figure.texts[1].get_text().replace("\n", " ")


def test_calibration_that_scaling_does_not_improve_says_what_chance_would_do(tmp_path):
    # a bin of 100 pairs at 0.8 deviates by √(2/π · 0.8 · 0.2 / 100) = 0.0319 on average, in either direction
    bins = [{"confidence": 0.8, "accuracy": 0.82, "count": 100}]
    measured = evaluation() | {"bins": bins, "bins_scaled": bins, "calibration_error": 0.02}
    figure = plots.reliability(reward_run(tmp_path, measured | {"calibration_error_scaled": 0.024}))
    title, note = (text.get_text().replace("\n", " ") for text in figure.texts[:2])
    assert title == "Stated probabilities are off by 2.0 points on average: scaling does not help"
    assert note.endswith("0.020 → 0.024 at T = 1.62 · 0.032 would be chance on so many")


def test_agreement_of_many_shows_those_who_share_the_most_pairs(tmp_path):
    pairs = list(itertools.combinations([f"a{number:02d}" for number in range(14)], 2))
    kappas = [{"first": a, "second": b, "kappa": 0.3, "count": int(a[1:]) + int(b[1:])} for a, b in pairs]
    measured = evaluation() | {"annotator_agreement": {"fleiss_kappa": None, "cohen_kappa": kappas}}
    figure = plots.annotator_agreement(reward_run(tmp_path, measured, name="r"))
    shown = {text for text in texts(figure) if text.startswith("a")}
    assert shown == {f"a{number:02d}" for number in range(2, 14)}
    assert figure.texts[1].get_text().replace("\n", " ").endswith("· r · 2 with fewer pairs are not shown")
    assert figure.texts[0].get_text() == "Agreement of annotators"
    assert overlapping_texts(figure) == []


def test_agreement_without_a_defined_kappa_is_not_drawn(tmp_path):
    undefined = {"fleiss_kappa": None, "cohen_kappa": [{"first": "a", "second": "b", "kappa": None, "count": 3}]}
    with pytest.raises(UserError, match="agreement of annotators"):
        plots.annotator_agreement(reward_run(tmp_path, evaluation() | {"annotator_agreement": undefined}))


# -- pairs -----------------------------------------------------------------------------------------------------


def by_pairs(tmp_path):
    return [
        reward_run(tmp_path, name=f"r{count}-{seed}", pairs=count, accuracy=accuracy + 0.01 * seed)
        for count, accuracy in ((8000, 0.66), (2000, 0.61), (32000, 0.69))
        for seed in (0, 1)
    ]


def test_learning_curve_of_pairs_joins_the_means_of_equal_numbers(tmp_path):
    figure = plots.learning_curve_of_pairs(by_pairs(tmp_path))
    axes = panel(figure, "Accuracy")
    assert axes.get_xscale() == "log"
    (line,) = [
        line for line in axes.lines if to_hex(line.get_color()) == style.HELD_OUT and line.get_marker() == "None"
    ]
    assert line.get_xydata() == pytest.approx(np.array([[2000, 0.615], [8000, 0.665], [32000, 0.695]]))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2k", "8k", "32k"]
    (ceiling,) = [line for line in axes.lines if to_hex(line.get_color()) == style.GOLD]
    assert ceiling.get_ydata()[0] == pytest.approx(0.712)
    assert "Correlation with gold" in panel_titles(figure)
    assert figure.texts[0].get_text().startswith("Accuracy: 61.5 → 69.5 % of 71.2 % attainable")
    assert overlapping_texts(figure) == []


def test_learning_curve_of_pairs_takes_numbers_that_the_runs_do_not_know(tmp_path):
    runs = by_pairs(tmp_path)
    for run in runs:
        run.evaluation["train"] = run.evaluation["fitted_to"] = None
        run.evaluation["correlation"] = None
    with pytest.raises(UserError, match="different numbers of pairs"):
        plots.learning_curve_of_pairs(runs)
    figure = plots.learning_curve_of_pairs(runs, [100, 100, 50, 50, 900, 900])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["50", "100", "900"]
    assert panel_titles(figure) & {"train", "Correlation with gold"} == set()


# -- words and policies ----------------------------------------------------------------------------------------


def test_a_reward_model_is_described_by_what_was_measured(tmp_path):
    text = " ".join(describe_reward(reward_run(tmp_path, members=3)))
    assert "orders 66.1 % of held-out pairs as the annotators did (71.2 % is the most attainable)." in text
    assert "with its scores divided by 1.62." in text
    assert "Any two of its 3 members agree on 83 % of the pairs." in text
    assert "by heart" not in text  # 5 points are the noise of two small samples


def test_a_reward_model_that_knows_its_pairs_by_heart_is_said_to(tmp_path):
    measured = evaluation() | {"train": {"accuracy": 0.93, "loss": 0.2}}
    (said, *_) = describe_reward(reward_run(tmp_path, measured))
    assert said.endswith("On the pairs that it was trained on it orders 93.0 %: it has learned some by heart.")


def test_objectives_weights_monitors_and_disagreement_have_panels(tmp_path):
    names = ["score_helpful", "score_concise", "weight_helpful", "heldout_score", "disagreement", "score_kept"]
    columns = {f"objective/{name}": [0.1, 0.2] for name in [*names, "score"]}
    columns |= {f"eval/{name}": [0.1, 0.3] for name in ["score", "score_helpful", "score_concise", "score_std"]}
    kept = Metric("Score of the best", "that are kept", "objective/score_kept", role="score")
    description = of_text(gold=False, objectives=["helpful", "concise"], monitors=["heldout_score"], more=[kept])
    run = Run(tmp_path / "ppo", "ppo", pd.DataFrame({"iteration": [0, 1], **columns}), description)
    shown = quantities([run])
    expected = ["Score: helpful", "Weight: helpful", "Score: concise"]
    expected += ["Monitor: heldout score", "Disagreement", "Score of the best"]
    assert [quantity.title for quantity in shown][1:] == [*expected, "Score std"]  # the last one is only logged
    assert run.series(shown[1].metric.heldout).to_list() == [0.1, 0.3]
    assert objectives([run]) == ["helpful", "concise"]
    assert overlapping_texts(plots.dashboard(run)) == []
