import dataclasses
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from rlhf_lightning.plots import arm_dots, save
from rlhf_lightning.report.comparison_page import ComparisonPage, render_comparison

CLAIMS = pd.DataFrame(
    {
        "claim": ["GRPO beats PPO", "RLOO is as good as <PPO>"],
        "published": ["+0.03", None],
        "ours": ["+0.060 ± 0.050", "0.001 ± 0.002"],
        "verdict": ["better", "equivalent"],
        "seeds": [10, 10],
    }
)
ARMS = pd.DataFrame({"arm": ["ppo", "grpo"], "mean": [0.81234, 0.87], "n": [10, 9], "published": [0.8, np.nan]})


class Page(HTMLParser):
    """Tags with their attributes, and the text of each cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "use", "path", "br", "rect"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.fixture
def whole(tmp_path):
    figure = arm_dots(ARMS.assign(low=0.7, high=0.9), title="Gold", label="gold")
    return ComparisonPage(
        title="Does a critic help?",
        question="Is PPO better than GRPO at equal samples?",
        claims=CLAIMS,
        arms=ARMS,
        source="Author et al. 2024, table 2",
        link="https://example.org/paper",
        answer="GRPO is better than PPO by 0.06.",
        cautions=["Run at <quick>: an eighth of the published budget."],
        figures=[(save(figure, tmp_path / "dots")[1], "Gold of every arm")],
        methods="Ten seeds\nper arm.\n\nHolm over two claims.",
        declaration={"hash": "0a1b2c", "seeds added later": "11, 12"},
        failures=pd.DataFrame({"run": ["grpo, seed 3"], "reason": ["NaN in the loss"]}),
        commands=["python -m rlhf_lightning compare a.yaml --budget quick"],
        spec="title: Does a critic help?",
    )


def test_the_page_holds_everything_in_the_order_in_which_it_is_read(whole):
    text = render_comparison(whole)
    said = (
        "rlhf_lightning comparison",
        "Does a critic help?",
        "at equal samples?",
        "Author et al. 2024, table 2",
        "GRPO is better than PPO by 0.06.",
        "Run at &lt;quick&gt;",
        "+0.060 ± 0.050",
        "Runs that failed",
        "NaN in the loss",
        'aria-label="Gold of every arm"',
        "<p>Ten seeds per arm.</p>",
        "<p>Holm over two claims.</p>",
        "seeds added later",
        "title: Does",
        "--budget quick",
    )
    body = text[text.index("<body>") :]
    places = [body.index(phrase) for phrase in said]
    assert places == sorted(places)


def test_the_page_is_well_formed_and_fetches_nothing(whole):
    text = render_comparison(whole)
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["https://example.org/paper"]
    assert "default-src 'none'" in text


def test_cells_are_as_they_are_written_and_numbers_are_readable(whole):
    page = Page(render_comparison(whole))
    assert page.cells[:10] == [*CLAIMS.columns, "GRPO beats PPO", "+0.03", "+0.060 ± 0.050", "better", "10"]
    assert page.cells[10:12] == ["RLOO is as good as <PPO>", "–"]
    assert page.cells[15:23] == ["arm", "mean", "n", "published", "ppo", "0.81", "10", "0.80"]
    assert page.cells[23:27] == ["grpo", "0.87", "9", "–"]


def test_verdicts_are_bold(whole):
    text = render_comparison(whole)
    assert "<td><b>better</b></td>" in text
    assert "<b>GRPO beats PPO</b>" not in text


@pytest.mark.parametrize("link", ["", "javascript:alert(1)", "arXiv:2402.14740"])
def test_only_addresses_of_the_web_are_links(whole, link):
    text = render_comparison(dataclasses.replace(whole, link=link))
    assert "<a " not in text
    assert "Author et al. 2024, table 2" in text


def test_what_there_is_nothing_of_has_no_heading():
    text = render_comparison(ComparisonPage("t", "q", claims=CLAIMS, arms=ARMS))
    absent = ("Runs that failed", "Figures", "Methods", "How it was declared", "To repeat it", "Before believing")
    assert [heading for heading in absent if heading in text[text.index("<body>") :]] == []
