import dataclasses

import pytest

from rlhf_lightning.plots.kit.style import GOLD, INK
from rlhf_lightning.records.arms import Arm, arms
from rlhf_lightning.records.runs import load_run
from rlhf_lightning.report import page, replies, summary, svg
from rlhf_lightning.report.cells import Cell
from tests.plots.synthetic_kinds import write_control, write_preference
from tests.plots.synthetic_runs import PROMPTS, write_pipeline, write_policy


def sample(iteration, row, score, response="yes"):
    return {"iteration": iteration, "row": row, "prompt": f"p{row}", "response": response, "score": score}


def test_the_telling_row_is_the_one_whose_score_changed_most():
    samples = [sample(0, 0, 0.1), sample(0, 1, 0.9), sample(5, 1, 9), sample(9, 0, 0.5), sample(9, 1, -0.1)]
    assert replies.telling_row(samples, "score") == 1
    assert replies.telling_row(samples[:2], "score") is None
    assert replies.telling_row([one | {"kl": one["iteration"] * (2 - one["row"])} for one in samples], "kl") == 0


def test_the_telling_row_goes_the_way_of_the_mean():
    # changes +1, +2 and −2.5: the mean rose, so the prompt that fell most is no example of it
    samples = [sample(0, row, 0.0) for row in range(3)] + [sample(9, row, s) for row, s in enumerate((1, 2, -2.5))]
    assert replies.changes(samples, "score") == {0: 1, 1: 2, 2: -2.5}
    assert replies.telling_row(samples, "score") == 1


def test_spaced_keeps_first_last_and_the_peak():
    shown = replies.spaced(range(0, 201, 5), keep=65)
    assert len(shown) == 8
    assert {0, 65, 200} <= set(shown)
    assert replies.spaced([0, 10, 20]) == [0, 10, 20]


def test_new_words_marks_what_is_not_at_that_place():
    pieces = replies.new_words("the lamp is red .", "the lamp is kindly red thanks .")
    assert [text for text, new in pieces if new] == ["kindly", "thanks"]
    assert "".join(text for text, _ in pieces) == "the lamp is kindly red thanks ."


def test_before_and_after_shows_the_first_rows_unpicked_with_the_peak_between():
    samples = [sample(iteration, row, row) for iteration in (0, 20, 40) for row in range(9)]
    exchanges = replies.before_and_after(samples, 20, most=4)
    assert [exchange.turns for exchange in exchanges] == [[("", f"p{row}")] for row in range(4)]
    assert [(reply.iteration, reply.best) for reply in exchanges[0].replies] == [(0, False), (20, True), (40, False)]
    assert replies.before_and_after(samples[:9], None) == []


def test_a_conversation_has_a_turn_per_message():
    assert replies.turns(PROMPTS[2])[1] == ("assistant", "hello , how can i help ?")


def test_inlined_figures_share_no_ids_and_follow_the_page_s_colours():
    text = (
        '<?xml version="1.0"?>\n<svg width="72pt" height="9pt" viewBox="0 0 72 9"><defs><clipPath id="c"/></defs>'
        f'<g clip-path="url(#c)"><use xlink:href="#m" style="fill: {INK}"/></g></svg>'
    )
    inlined = svg.inline(text, prefix="f1", title='gold & "proxy"')
    assert inlined.startswith('<svg role="img" aria-label="gold &amp; &quot;proxy&quot;"')
    assert 'id="f1-c"' in inlined
    assert "url(#f1-c)" in inlined
    assert 'href="#f1-m"' in inlined
    assert f"fill: var(--c-{INK[1:]}, {INK})" in inlined
    assert "max-width: 96px" in inlined  # 72 pt at 96 px per inch


def test_a_sparkline_spans_its_box_and_needs_three_values():
    assert svg.sparkline([1.0, 2.0], GOLD) == ""
    line = svg.sparkline([0.0, 1.0, 0.5], GOLD)
    assert 'points="4.0,18.0 44.0,4.0 84.0,11.0"' in line


def test_every_colour_has_a_counterpart_for_dark_pages():
    assert svg.palette(dark=True) != svg.palette(dark=False)
    assert len(set(svg.NIGHT.values())) == len(svg.NIGHT)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    whole = load_run(write_pipeline(folder / "whole", noise=0))
    return [whole, load_run(write_policy(folder / "bare", gold=False, done=False, iterations=55))]


def test_summary_has_a_cell_per_run_and_dashes_for_what_is_missing(runs):
    rows = {row.label: row.cells for group in summary.summary(arms(runs)) for row in group.rows}
    assert rows["Gold reward"][0].text == "0.61 → 0.14"
    assert rows["Gold reward"][1] is None
    assert rows["Best gold reward"][0].note == "at iteration 50, 6.03 nats"
    assert rows["Held-out accuracy"][0].note == "of 0.71 attainable"
    assert rows["Pairs"][0].text == "40"


def test_summary_names_what_each_kind_of_run_measures(tmp_path):
    control = load_run(write_control(tmp_path / "trpo", best=500.0))
    dpo = load_run(write_preference(tmp_path / "dpo"))
    groups = {
        group.title: {row.label: row.cells for row in group.rows} for group in summary.summary(arms([control, dpo]))
    }
    assert groups["Control policy"]["Mean return"][0].text == "25 → 500"  # 500 − 475 e^(−7 t), t from 0 to 1
    assert groups["Control policy"]["Best mean return"][0].note == "after 98,304 steps"  # 48 · 2,048
    assert groups["Control policy"]["Rejected steps"][0] == Cell("2", "of 48")
    assert groups["Control policy"]["Environment"][1] is None
    assert groups["Policy"]["Accuracy"][1].text == "0.50 → 0.80"
    assert groups["Policy"]["Learned from"][1] == Cell("32,000", "preference pairs")  # 500 · 64
    assert not {"Proxy reward", "Reward", "Score"} & set(groups["Policy"])


def test_a_reward_is_called_proxy_only_where_gold_differs_from_it(tmp_path):
    def labels(run):
        return [row.label for group in summary.summary(arms([run])) for row in group.rows]

    assert "Proxy reward" in labels(load_run(write_policy(tmp_path / "ppo", iterations=20)))
    on_gold = labels(load_run(write_policy(tmp_path / "on-gold", iterations=20, on_gold=True)))
    assert not {"Proxy reward", "Reward"} & set(on_gold)
    assert "Reward" in labels(load_run(write_policy(tmp_path / "bare", iterations=20, gold=False)))


def test_nothing_is_missing_from_control_and_preference_runs(tmp_path):
    complete = [write_control(tmp_path / "trpo"), write_preference(tmp_path / "dpo")]
    assert summary.missing([load_run(path) for path in complete]) == []
    (note,) = summary.missing([load_run(write_preference(tmp_path / "bare", gold=False))])
    assert note.startswith("bare: no gold reward")


def test_warnings_of_detectors_are_listed_with_their_time(runs):
    whole, bare = runs
    warning = {"iteration": 1200, "detector": "Hacking", "message": "score rose <b>while</b> the monitor fell"}
    policy = dataclasses.replace(whole.stages["policy"], warnings=[warning])
    warned = dataclasses.replace(whole, stages=whole.stages | {"policy": policy})
    text = " ".join(page.render([warned], []).split())
    assert '<li><b>Hacking</b> <span class="quiet">iteration 1,200</span>' in text
    assert "score rose &lt;b&gt;while&lt;/b&gt; the monitor fell</li>" in text
    assert '<span class="quiet">whole, iteration 1,200</span>' in page.render([warned, bare], [])
    assert "Warnings during training" not in page.render([whole], [])


def test_the_pairs_of_a_pipeline_lack_nothing(tmp_path):
    path = write_pipeline(tmp_path / "quickstart", iterations=20)
    for name in ("config.yaml", "environment.json"):  # the command that makes pairs writes neither
        (path / "pairs" / name).unlink()
    assert summary.missing([load_run(path)]) == []


def test_missing_pieces_are_named(runs):
    notes = summary.missing(runs)
    assert "bare: not finished (there is no DONE file); its figures end at iteration 55." in notes
    assert any(note.startswith("bare: no gold reward") for note in notes)
    assert not any(note.startswith("whole") for note in notes)


def test_differences_are_the_settings_that_differ(runs):
    _, bare = runs
    other = dataclasses.replace(bare, config=bare.config | {"seed_everything": 2, "name": "other"})
    alone = [Arm(name, (run,)) for name, run in (("bare", bare), ("other", other))]
    assert summary.differences(alone) == [("seed_everything", ["1", "2"])]
    assert summary.differences(alone[:1]) == []
