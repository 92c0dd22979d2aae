"""How pages are filled: one frame, one stylesheet, figures within the text; nothing is fetched or executed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlhf_lightning.report import svg

_FOLDER = Path(__file__).parent


def fill(template: str, **content: Any) -> str:
    """A page, as HTML text; all text among its content is escaped, but for what is `Markup`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(css=Markup(_stylesheet()), markup=Markup, **content)


def inline_figures(figures: Sequence[tuple[Path, str]]) -> list[dict[str, Any]]:
    """Figures to stand within one page: their SVG files, and what each shows for those who cannot see it."""
    return [
        {
            "svg": Markup(svg.inline(path.read_text(encoding="utf-8"), prefix=f"f{index}", title=title)),
            "title": title,
            "name": path.stem,
        }
        for index, (path, title) in enumerate(figures)
    ]


def _stylesheet() -> str:
    sheet = (_FOLDER / "page.css").read_text(encoding="utf-8")
    day, night = svg.palette(dark=False), svg.palette(dark=True)
    return f":root {{ {day} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {night} }} }}\n{sheet}"
