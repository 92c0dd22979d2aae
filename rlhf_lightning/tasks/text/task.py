"""The user's own prompts, demonstrations or feedback."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.feedback import as_labels, as_pairs, as_rankings
from rlhf_lightning.tasks.task import Probes, Split, Task
from rlhf_lightning.tasks.text.bpe import SMALLEST, train_bpe
from rlhf_lightning.tasks.text.feedback import check_responses
from rlhf_lightning.tasks.text.layouts import detect, parse
from rlhf_lightning.tasks.text.probes import text_probes
from rlhf_lightning.tasks.text.readers import Source, locate
from rlhf_lightning.tasks.text.records import BadPairError, Layout, LayoutError, TextRecord
from rlhf_lightning.tasks.text.splits import HASHES, by_hash, prompt_hash, prompt_key
from rlhf_lightning.types import Demonstration, Feedback, LabelledResponse, PreferencePair, Prompt, Ranking, Rating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class TextTask(Task):
    """Text from a file, whose layout decides what the task provides (see `layouts`).

    A file of pairs or rankings provides prompts, demonstrations (the best responses), preferences (all pairs of a
    ranking), rankings (a pair is one of two) and labels (of each pair, one response is desirable and one is not).
    Files of ratings, of labels and of demonstrations provide these and prompts; a file of prompts provides prompts.

    Without ``heldout_path``, a hash of its text decides whether a prompt is held out: all records of one prompt are in
    the same split, whatever the order of the file. With it, a prompt in both files is dropped from training.

    Args:
        path: JSON lines (``.jsonl``, ``.jsonl.gz``), Parquet, a dataset folder, or ``owner/name`` of a dataset on the
            Hugging Face hub; the last two may be followed by ``:split``. A missing file is reported at once; the
            content is read when it is first needed.
        heldout_path: the held-out records, if they are in a file of their own.
        heldout_fraction: expected share of held-out prompts without ``heldout_path``, usually 0.02–0.1; at least one
            prompt is held out and at least one is trained on.
        heldout_limit: at most this many prompts are held out; the others of ``path`` are trained on.
        on_bad_pair: what to do with feedback whose prompt or responses are empty, whose conversations differ before
            the last turn or have no reply, whose compared responses are identical, or whose ranking is not a strict
            order of all responses: stop with an error, or drop and count it.
        vocabulary: size of the tokenizer that is trained for models built from scratch.
        max_records: read only this many records from the beginning of each file.
        seed: of the hash that decides which prompts are held out.

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

    def reads(self) -> list[Path]:
        """The files, or the folders of datasets."""
        sources = (self._source, self._heldout_source)
        return [source.place for source in sources if source is not None and source.place is not None]

    @cached_property
    def provides(self) -> frozenset[str]:  # type: ignore[override]
        """What the layout of the first record provides; the others are not read."""
        return _first_layout(self._source).provides

    @property
    def dropped(self) -> dict[str, int]:
        """Number of dropped records by reason; reads the files."""
        return dict(self._data.dropped)

    def prompts(self, split: Split) -> list[Prompt]:
        """The distinct prompts, in the order of the file."""
        return list({prompt_key(record.prompt): record.prompt for record in self._data.splits[split]}.values())

    def demonstrations(self, split: Split) -> list[Demonstration]:
        """The responses to imitate, in the order of the file; of a pair or ranking, the best one."""
        self.require(frozenset({"demonstrations"}), "demonstrations()")
        return [Demonstration(record.prompt, record.responses[0]) for record in self._data.splits[split]]

    def preferences(self, split: Split) -> list[PreferencePair]:
        """The pairs, in the order of the file; a ranking gives all of its pairs."""
        return [pair for feedback in self._feedback("preferences", split) for pair in as_pairs(feedback)]

    def rankings(self, split: Split) -> list[Ranking]:
        """The rankings, in the order of the file; a pair is a ranking of two, and has no margin as such."""
        return [ranking for feedback in self._feedback("rankings", split) for ranking in as_rankings(feedback)]

    def ratings(self, split: Split) -> list[Rating]:
        """Each response with its ratings, in the order of the file."""
        return [rating for rating in self._feedback("ratings", split) if isinstance(rating, Rating)]

    def labels(self, split: Split) -> list[LabelledResponse]:
        """The labels, in the order of the file; of a pair, the chosen response is desirable, the rejected one not."""
        return [label for feedback in self._feedback("labels", split) for label in as_labels(feedback)]

    def _feedback(self, kind: str, split: Split) -> Iterator[Feedback]:
        self.require(frozenset({kind}), f"{kind}()")
        return (feedback for record in self._data.splits[split] for feedback in record.feedback)

    def probes(self, limit: int) -> Probes:
        """Held-out demonstrations with one more sentence, a repeated last sentence, or a courteous beginning."""
        return text_probes(self.demonstrations("heldout"), limit) if "demonstrations" in self.provides else {}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A byte-level BPE, trained once on the text of the training split."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return train_bpe(self._training_texts(), self.vocabulary)

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
        if self._heldout_source is None:
            keys = by_hash((record.prompt for record in records), self.seed)
            heldout_keys = set(keys[: self._heldout_count(keys)])
            heldout = [record for record in records if prompt_key(record.prompt) in heldout_keys]
        else:
            heldout, dropped_heldout = self._read(self._heldout_source)
            dropped += dropped_heldout
            missing = records[0].layout.provides - heldout[0].layout.provides
            if missing:
                raise UserError(
                    f"{self._heldout_source.path}: provides no {' and no '.join(sorted(missing))}; "
                    f"expected what {self._source.path} provides"
                )
            keys = by_hash((record.prompt for record in heldout), self.seed)
            heldout_keys, kept = set(keys), set(keys[: self.heldout_limit])
            heldout = [record for record in heldout if prompt_key(record.prompt) in kept]
        train = [record for record in records if prompt_key(record.prompt) not in heldout_keys]
        if self._heldout_source is not None and len(train) < len(records):
            dropped["prompt also held out"] += len(records) - len(train)
            if not train:
                raise UserError(
                    f"{self._source.path}: every prompt is also in {self._heldout_source.path}; "
                    "expected prompts to train on that are not held out"
                )
        if dropped:
            log.warning("%s: dropped %d records (%s)", self._source.path, dropped.total(), _counted(dropped))
        return _Data({"train": train, "heldout": heldout}, dropped)

    def _read(self, source: Source) -> tuple[list[TextRecord], Counter[str]]:
        """The usable records of a file, and the number of dropped ones by reason."""
        records: list[TextRecord] = []
        dropped: Counter[str] = Counter()
        first = ""
        for where, fields in islice(source.records(), self.max_records):
            try:
                record = parse(fields)
                check_responses(record)
            except BadPairError as error:
                if self.on_bad_pair == "error":
                    raise UserError(f"{where}: {error} (on_bad_pair: drop leaves such records out)") from error
                dropped[error.reason] += 1
                continue
            except LayoutError as error:
                raise UserError(f"{where}: {error}") from error
            first = first or where
            if records and _form(record) != _form(records[0]):
                raise UserError(
                    f"{where}: the layout is {_form(record)}, but that of {first} is {_form(records[0])}; "
                    "expected one layout per file"
                )
            records.append(record)
        if not records:
            all_of_them = f"all {dropped.total()} records were dropped"
            raise UserError(f"{source.path}: {all_of_them}; expected some to be left ({_counted(dropped)})")
        return records, dropped

    def _heldout_count(self, keys: list[str]) -> int:
        if len(keys) < 2:
            raise UserError(
                f"{self._source.path}: a single prompt; expected at least 2, one to train on and one to hold out "
                "(or a heldout_path)"
            )
        below = sum(prompt_hash(key, self.seed) < self.heldout_fraction * HASHES for key in keys)
        most = min(len(keys) - 1, self.heldout_limit or len(keys))
        return min(max(below, 1), most)


class _Data(NamedTuple):
    splits: dict[str, list[TextRecord]]
    dropped: Counter[str]


def _counted(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))


def _first_layout(source: Source) -> Layout:
    where, fields = next(source.records())
    try:
        return detect(fields)
    except LayoutError as error:
        raise UserError(f"{where}: {error}") from error


def _form(record: TextRecord) -> str:
    """The layout, and whether the prompt is text or a conversation where the layout leaves that open."""
    if record.layout.title.startswith("prompt"):
        return f"{record.layout.title} with {'text' if isinstance(record.prompt, str) else 'messages'}"
    return record.layout.title
