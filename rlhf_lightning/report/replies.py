"""Which replies a report shows, and which of their words are new."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from rlhf_lightning.plots.kit.style import fixed


@dataclass(frozen=True)
class Reply:
    """One reply, ready to be shown.

    Args:
        pieces: the text cut into pieces, each with whether its words are new.
        best: whether this is the iteration at which gold was highest.
        same: whether it equals the reply it is compared with.
    """

    iteration: int
    pieces: list[tuple[str, bool]]
    score: str
    gold: str
    kl: str
    best: bool
    same: bool


@dataclass(frozen=True)
class Exchange:
    """A prompt, as turns of (role, text), and replies to it."""

    turns: list[tuple[str, str]]
    replies: list[Reply]


def through_training(samples: Sequence[dict[str, Any]], peak: int | None, measure: str) -> Exchange | None:
    """Replies to the prompt whose measure tells most, each compared with the reply shown before it."""
    row = telling_row(samples, measure)
    if row is None:
        return None
    of_row = {sample["iteration"]: sample for sample in samples if sample["row"] == row}
    shown = [of_row[iteration] for iteration in spaced(sorted(of_row), keep=peak)]
    later = [_reply(sample, peak, before) for before, sample in itertools.pairwise(shown)]
    return Exchange(turns(shown[0]["prompt"]), [_reply(shown[0], peak), *later])


def before_and_after(samples: Sequence[dict[str, Any]], peak: int | None, most: int = 6) -> list[Exchange]:
    """Replies before training and at the end (and at gold's peak) to the first prompts, in their order."""
    iterations = sorted({sample["iteration"] for sample in samples})
    if len(iterations) < 2:
        return []
    chosen = [iterations[0], iterations[-1]]
    if peak in iterations[1:-1]:
        chosen.insert(1, peak)
    by_key = {(sample["iteration"], sample["row"]): sample for sample in samples}
    exchanges = []
    for row in sorted({sample["row"] for sample in samples}):
        if all((iteration, row) in by_key for iteration in chosen):
            first, *later = (by_key[iteration, row] for iteration in chosen)
            replies = [_reply(first, peak), *(_reply(sample, peak, first) for sample in later)]
            exchanges.append(Exchange(turns(first["prompt"]), replies))
    return exchanges[:most]


def changes(samples: Sequence[dict[str, Any]], measure: str) -> dict[int, float]:
    """By row, how far its measure moved from the first to the last iteration; empty without two iterations.

    Args:
        measure: ``score``, ``gold`` or ``kl``.
    """
    iterations = sorted({sample["iteration"] for sample in samples})
    if len(iterations) < 2:
        return {}
    known = [sample for sample in samples if sample.get(measure) is not None]
    first, last = (
        {sample["row"]: sample[measure] for sample in known if sample["iteration"] == iteration}
        for iteration in (iterations[0], iterations[-1])
    )
    return {row: last[row] - first[row] for row in sorted(first.keys() & last.keys())}


def telling_row(samples: Sequence[dict[str, Any]], measure: str) -> int | None:
    """The row that moved furthest in the direction in which the mean did: an outlier of the other kind tells little."""
    moved = changes(samples, measure)
    direction = 1 if sum(moved.values()) >= 0 else -1
    return max(moved, key=lambda row: direction * moved[row], default=None)


def spaced(iterations: Sequence[int], *, keep: int | None = None, most: int = 8) -> list[int]:
    """At most ``most`` iterations, evenly spread, with the first, the last and the one to keep."""
    if len(iterations) <= most:
        return list(iterations)
    indices = {round(index * (len(iterations) - 1) / (most - 1)) for index in range(most)}
    chosen = {iterations[index] for index in indices}
    if keep is not None and keep in iterations and keep not in chosen:
        chosen.discard(min(sorted(chosen)[1:-1], key=lambda iteration: abs(iteration - keep)))
        chosen.add(keep)
    return sorted(chosen)


def turns(prompt: Any) -> list[tuple[str, str]]:
    """A prompt as turns of (role, text); a plain text has one turn without role."""
    if isinstance(prompt, list):
        return [(str(turn.get("role", "")), str(turn.get("content", ""))) for turn in prompt if isinstance(turn, dict)]
    return [("", str(prompt))]


def new_words(before: str, after: str) -> list[tuple[str, bool]]:
    """``after`` cut into pieces, each with whether its words were not in ``before`` at that place."""
    old, new = re.findall(r"\S+", before), re.findall(r"\S+\s*", after)
    matcher = SequenceMatcher(None, old, [word.strip() for word in new], autojunk=False)
    pieces = []
    for tag, _, _, start, end in matcher.get_opcodes():
        text = "".join(new[start:end])
        words = text.rstrip()
        pieces += [(words, tag != "equal"), (text[len(words) :], False)]
    return [piece for piece in pieces if piece[0]]


def _reply(sample: dict[str, Any], peak: int | None, before: dict[str, Any] | None = None) -> Reply:
    text = str(sample["response"])
    old = text if before is None else str(before["response"])
    return Reply(
        iteration=sample["iteration"],
        pieces=new_words(old, text),
        score=fixed(sample.get("score")),
        gold=fixed(sample.get("gold")),
        kl=fixed(sample.get("kl"), 1),
        best=sample["iteration"] == peak,
        same=before is not None and old == text,
    )
