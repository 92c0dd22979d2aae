"""Text of models and of files stands in a report as text: nothing of it is an element, an attribute or a script."""

import json
from html.parser import HTMLParser

import pytest

from rlhf_lightning.plots.figures import learning
from rlhf_lightning.records.runs import load_run
from rlhf_lightning.report.page import Picture, render

ATTACKS = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "attribute": "\"' onmouseover='alert(1)' x=\"",
    "closing": "</title></style></svg></pre></div><script>alert(1)</script>",
    "template": "{{ 7 * 7 }}{% raw %}",
}


class Page(HTMLParser):
    """The elements and the text that a browser would make of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.text = set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def write_run(folder, attack):
    """A run in which everything that comes from a model or a file is an attack."""
    folder.mkdir(parents=True)
    columns = ["iteration", "objective/score", "objective/kl_ref_sequence", "eval/score", "eval/kl_ref_sequence"]
    quoted = attack.replace('"', '""')
    columns.append(f'"eval/score_{quoted}"')
    rows = [f"{i},{i / 10},{i / 5},{i / 10},{i / 5},{i / 7}" for i in range(6)]
    (folder / "metrics.csv").write_text("\n".join([",".join(columns), *rows]) + "\n")
    said = [attack, [{"role": "user", "content": attack}], [{"role": attack, "content": "a"}]]
    lines = [
        json.dumps({"iteration": i, "row": row, "prompt": prompt, "response": f"{attack} {i}", "score": i / 10})
        for i in (0, 5)
        for row, prompt in enumerate(said)
    ]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    warning = {"iteration": 3, "detector": attack, "message": attack}
    (folder / "warnings.jsonl").write_text(json.dumps(warning) + "\n")
    (folder / "config.yaml").write_text(json.dumps({"task": {"class_path": attack}, attack: attack}))
    (folder / "environment.json").write_text(json.dumps({"command": attack, "versions": {attack: attack}}))
    (folder / "DONE").write_text("")
    return folder


@pytest.mark.parametrize("kind", ATTACKS)
def test_text_is_shown_and_not_run(kind, tmp_path):
    attack = ATTACKS[kind]
    name = attack.replace("/", "∕")  # no folder has a slash in its name
    text = render([load_run(write_run(tmp_path / name, attack))], [])
    page = Page(text)
    assert "script" not in page.elements
    assert "img" not in page.elements
    assert not [attribute for attribute in page.attributes if attribute.startswith("on")]
    assert page.text.count(attack) >= 8  # prompts, responses, warning, configuration, environment
    assert "default-src 'none'" in text  # and a browser would run none


def test_text_in_figures_is_escaped(tmp_path):
    """They stand in the page as they are, and beside it."""
    attack = ATTACKS["script"]
    run = load_run(write_run(tmp_path / attack.replace("/", "∕"), attack))
    path = tmp_path / "figure.svg"
    learning.learning_curves([run]).savefig(path)
    assert "&lt;script" in path.read_text(encoding="utf-8")
    page = Page(render([run], [Picture("learning", path, attack)]))
    assert "svg" in page.elements
    assert "script" not in page.elements
