"""The user's own prompts, demonstrations or feedback."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, islice
from typing import TYPE_CHECKING, Literal

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.task import Probes, Split, Task
from rlhf_lightning.tasks.text.bpe import SMALLEST, train_bpe
from rlhf_lightning.tasks.text.feedback import check_responses
from rlhf_lightning.tasks.text.layouts import detect, parse
from rlhf_lightning.tasks.text.probes import text_probes
from rlhf_lightning.tasks.text.readers import Source, locate
from rlhf_lightning.tasks.text.records import BadPairError, Layout, LayoutError, Record
from rlhf_lightning.tasks.text.splits import HASHES, by_hash, prompt_hash, prompt_key
from rlhf_lightning.types import Demonstration, PreferencePair, Prompt, Ranking, Rating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class TextTask(Task):
    """Text from a file: what it provides follows from the layout of its records (see `layouts`).

    A file of pairs or rankings provides prompts, demonstrations (the best responses), preferences (all pairs of a
    ranking) and rankings (a pair is one of two); a file of ratings provides prompts and ratings; a file of
    demonstrations provides prompts and demonstrations; a file of prompts provides prompts.

    Without ``heldout_path``, a prompt is held out or not by a hash of its text: every record of one prompt lands on
    the same side, and the order of the file does not matter. With it, a prompt in both files is dropped from training.

    Args:
        path: JSON lines (``.jsonl``, ``.jsonl.gz``), Parquet, a dataset folder, or ``owner/name`` of a dataset on the
            Hugging Face hub; the last two may be followed by ``:split``. Missing files are reported at once, the
            rest is read when it is first needed.
        heldout_path: the held-out records, if they are in a file of their own.
        heldout_fraction: expected share of the prompts that is held out if they are not; at least one prompt is
            held out and at least one is trained on. 0.02–0.1 is usual.
        heldout_limit: at most this many prompts are held out; the others of ``path`` are trained on.
        on_bad_pair: what to do with a pair, ranking or rating whose prompt or responses are empty, whose conversations
            differ before the last turn or have no reply, whose compared responses are identical, or that is no
            strict order of them all (ties, repeated or missing numbers): stop, or drop and count it.
        vocabulary: entries of the tokenizer that is trained for models built from scratch.
        max_records: read this many records of each file, from its beginning.
        seed: of the hash that holds out prompts.

    Raises:
        UserError: there is no such file, or an argument is out of range.
    """

    def __init__(
        self,
        path: str,
        heldout_path: str | None = None,
        heldout_fraction: float = 0.1,
        heldout_limit: int | None = None,
        on_bad_pair: Literal["error", "drop"] = "error",
        vocabulary: int = 4096,
        max_records: int | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < heldout_fraction < 1:
            raise UserError(f"heldout_fraction is {heldout_fraction}; expected a number between 0 and 1")
        if on_bad_pair not in ("error", "drop"):
            raise UserError(f"on_bad_pair is {on_bad_pair!r}; expected 'error' or 'drop'")
        if vocabulary < SMALLEST:
            raise UserError(f"vocabulary is {vocabulary}; expected at least {SMALLEST} (bytes and special tokens)")
        for name, value in (("heldout_limit", heldout_limit), ("max_records", max_records)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; expected at least 1")
        self.heldout_fraction = heldout_fraction
        self.heldout_limit = heldout_limit
        self.on_bad_pair = on_bad_pair
        self.vocabulary = vocabulary
        self.max_records = max_records
        self.seed = seed
        self._source = locate(str(path))
        self._heldout_source = None if heldout_path is None else locate(str(heldout_path))
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @cached_property
    def provides(self) -> frozenset[str]:  # type: ignore[override]
        """What the first record has to offer; the others are not read."""
        return _first_layout(self._source).provides

    @property
    def dropped(self) -> dict[str, int]:
        """How many records were dropped, by reason; reads the files."""
        return dict(self._data.dropped)

    def prompts(self, split: Split) -> list[Prompt]:
        """The distinct prompts, in the order of the file."""
        return list({prompt_key(record.prompt): record.prompt for record in self._data.splits[split]}.values())

    def demonstrations(self, split: Split) -> list[Demonstration]:
        """The responses to imitate (of a pair or ranking, the best one), in the order of the file."""
        self.require(frozenset({"demonstrations"}), "demonstrations()")
        return [Demonstration(record.prompt, record.responses[0]) for record in self._data.splits[split]]

    def preferences(self, split: Split) -> list[PreferencePair]:
        """The pairs, in the order of the file; a ranking gives each of its responses against all that are worse."""
        self.require(frozenset({"preferences"}), "preferences()")
        return [
            PreferencePair(record.prompt, *two, record.annotator, record.margin, record.objective)
            for record in self._data.splits[split]
            for two in combinations(record.responses, 2)
        ]

    def rankings(self, split: Split) -> list[Ranking]:
        """The rankings, in the order of the file; a pair is a ranking of two, and has no margin as such."""
        self.require(frozenset({"rankings"}), "rankings()")
        return [
            Ranking(record.prompt, record.responses, record.annotator, record.objective)
            for record in self._data.splits[split]
        ]

    def ratings(self, split: Split) -> list[Rating]:
        """Each response with its ratings, in the order of the file."""
        self.require(frozenset({"ratings"}), "ratings()")
        return [
            Rating(record.prompt, response, rated, record.annotator)
            for record in self._data.splits[split]
            for response, rated in zip(record.responses, record.ratings, strict=True)
        ]

    def probes(self, limit: int) -> Probes:
        """Held-out demonstrations with a sentence more, the last one said again, or a courteous beginning."""
        return text_probes(self.demonstrations("heldout"), limit) if "demonstrations" in self.provides else {}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A byte-level BPE trained on the text of the training split, once."""
        if self._tokenizer is None:
            self._tokenizer = train_bpe(self._training_texts(), self.vocabulary)
        return self._tokenizer

    def _training_texts(self) -> Iterator[str]:
        for prompt in self.prompts("train"):
            if isinstance(prompt, str):
                yield prompt
            else:
                yield from (message["content"] for message in prompt)
        for record in self._data.splits["train"]:
            yield from record.responses

    @cached_property
    def _data(self) -> _Data:
        records, dropped = self._read(self._source)
        by_rank = by_hash((record.prompt for record in records), self.seed)
        if self._heldout_source is None:
            held = set(by_rank[: self._heldout_count(by_rank)])
            heldout = [record for record in records if prompt_key(record.prompt) in held]
        else:
            heldout, dropped_heldout = self._read(self._heldout_source)
            dropped += dropped_heldout
            self._check_offer(records, heldout)
            ranked = by_hash((record.prompt for record in heldout), self.seed)
            kept = set(ranked[: self.heldout_limit])
            heldout = [record for record in heldout if prompt_key(record.prompt) in kept]
            held = set(ranked)
        train = [record for record in records if prompt_key(record.prompt) not in held]
        if self._heldout_source is not None and len(train) < len(records):
            dropped["prompt also held out"] += len(records) - len(train)
            if not train:
                raise UserError(
                    f"{self._source.path}: every prompt is also in {self._heldout_source.path}; "
                    "expected prompts to train on that are not held out"
                )
        if dropped:
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
            log.warning("%s: dropped %d records (%s)", self._source.path, sum(dropped.values()), counts)
        return _Data({"train": train, "heldout": heldout}, dropped)

    def _read(self, source: Source) -> tuple[list[Record], Counter[str]]:
        """The records of a file that are kept, and why the others were not."""
        records: list[Record] = []
        dropped: Counter[str] = Counter()
        first = ""
        for where, fields in islice(source.records(), self.max_records):
            try:
                record = parse(fields)
                if record.layout.is_feedback:
                    check_responses(record)
            except BadPairError as error:
                if self.on_bad_pair == "error":
                    raise UserError(f"{where}: {error} (on_bad_pair: drop leaves such records out)") from error
                dropped[error.reason] += 1
                continue
            except LayoutError as error:
                raise UserError(f"{where}: {error}") from error
            first = first or where
            if _form(record) != _form((records or [record])[0]):
                raise UserError(
                    f"{where}: the layout is {_form(record)}, but that of {first} is {_form(records[0])}; "
                    "expected one layout per file"
                )
            records.append(record)
        if not records:
            raise UserError(f"{source.path}: all {dropped.total()} records were dropped; expected some to be left")
        return records, dropped

    def _heldout_count(self, by_rank: list[str]) -> int:
        if len(by_rank) < 2:
            raise UserError(
                f"{self._source.path}: a single prompt; expected at least 2, one to train on and one to hold out "
                "(or a heldout_path)"
            )
        below = sum(prompt_hash(key, self.seed) < self.heldout_fraction * HASHES for key in by_rank)
        most = min(len(by_rank) - 1, self.heldout_limit or len(by_rank))
        return min(max(below, 1), most)

    def _check_offer(self, records: list[Record], heldout: list[Record]) -> None:
        missing = records[0].layout.provides - heldout[0].layout.provides
        if missing:
            assert self._heldout_source is not None
            raise UserError(
                f"{self._heldout_source.path}: provides no {' and no '.join(sorted(missing))}; "
                f"expected what {self._source.path} provides"
            )


@dataclass
class _Data:
    splits: dict[str, list[Record]]
    dropped: Counter[str] = field(default_factory=Counter)


def _first_layout(source: Source) -> Layout:
    where, fields = next(source.records())
    try:
        return detect(fields)
    except LayoutError as error:
        raise UserError(f"{where}: {error}") from error


def _form(record: Record) -> str:
    """The layout, and whether the prompt is text or a conversation where the layout leaves that open."""
    if record.layout.value.startswith("prompt"):
        return f"{record.layout.value} with {'text' if isinstance(record.prompt, str) else 'messages'}"
    return record.layout.value
