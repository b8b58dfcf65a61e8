"""From files to rows, with an account of every row that was seen: `read == len(rows) + len(skipped)`.

Wrong keys and types raise one error that lists them all; rows that teach nothing are left out by reason; what is
odd but usable is kept and told once. `fields.py` says where the line between the first two runs.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise

from msgspec import Struct

from preftune.errors import Problem, UserError
from preftune.rows.formats import COMMON, FORMATS, Format, detect_format
from preftune.rows.parse import MalformedRow, SkippedRow
from preftune.rows.row import Pair, Place, Prompt, Ranking, Rating, Row, responses, said
from preftune.rows.sources import load

INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u180e"))
BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
HEADERS = ("\n\nHuman:", "\n\nAssistant:", "Assistant:", "Human:", "<|im_start|>", "<|start_header_id|>", "[INST]")
SEVERAL = 3  # places named in one note


class Reading(Struct, frozen=True):
    """What was read.

    rows: usable rows in their order; skipped: one problem for each row left out; notes: what was kept although odd,
    told once with count and first places; read: rows seen; files: SHA-256 of each file.
    """

    rows: list[Row]
    skipped: list[Problem]
    notes: list[Problem]
    read: int
    files: dict[str, str]


class Tally:
    """Remarks counted by reason, so that each is told once: how many, and where the first stand."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, list[str]]] = {}

    def add(self, reason: str, message: str, place: Place | str) -> None:
        """what: what is said of each such row, such as `the prompt is empty`; the first wording stays."""
        places = self._found.setdefault(reason, (message, []))[1]
        if not places or places[-1] != str(place):  # one row may give several texts to say it of
            places.append(str(place))

    def problems(self) -> list[Problem]:
        """One problem a reason; where: its first place."""
        found = self._found.items()
        return [Problem(message + _more(places), places[0], reason=reason) for reason, (message, places) in found]


def _more(places: Sequence[str]) -> str:
    """` (12 rows; also b:7, b:9)` where there is more than the first place."""
    if len(places) < 2:
        return "."
    return f" ({len(places)} rows; also {', '.join(places[1:SEVERAL])}{', ...' if len(places) > SEVERAL else ''})."


def read(source: str | Sequence[str], *, limit: int | None = None) -> Reading:
    """All rows of a file, of several files, or of a hub dataset (`owner/name` or `owner/name:split`).

    limit: rows to take of each file, all if None. Raises one UserError with every defect of all files.
    """
    reader = _Reader()
    for name in [source] if isinstance(source, str) else source:
        reader.add(name, limit)
    if reader.problems:
        raise UserError(reader.problems, code=reader.code or 2)
    if not reader.files:
        raise UserError("no file of rows is named.")
    notes = [*reader.notes, *remarks(reader.rows)]
    return Reading(reader.rows, reader.skipped, notes, len(reader.rows) + len(reader.skipped), reader.files)


class _Reader:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.skipped: list[Problem] = []
        self.problems: list[Problem] = []
        self.files: dict[str, str] = {}
        self.notes: list[Problem] = []
        self.code = 0

    def add(self, name: str, limit: int | None) -> None:
        try:
            found = load(name, limit)
        except UserError as error:
            self.problems += error.problems
            self.code = error.code
            return
        if found.digest in self.files.values():
            self.notes.append(Problem("the same file a second time: its rows count twice.", name, reason="file.twice"))
        self.files[name] = found.digest
        self.problems += found.problems
        defects: list[tuple[MalformedRow, Place]] = []
        first: tuple[Format, Place] | None = None
        extra: dict[str, Mapping[str, object]] = {}
        for place, value in found.records:
            try:
                dialect = detect_format(value)
                first = first or (dialect, place)
                if dialect is not first[0]:
                    message = (
                        f"has the form {dialect.name}, but the file began with {first[0].name} at {first[1].line}."
                    )
                    raise MalformedRow(message, "Keep one form a file.", "row.mixed")
                for key in _unread(dialect, value):
                    extra.setdefault(key, value)
                row = dialect.read(value, place)
                check(row)
                self.rows.append(row)
            except MalformedRow as defect:
                defects.append((defect, place))
            except SkippedRow as unusable:
                self.skipped.append(Problem(unusable.message, str(place), reason=unusable.reason))
        self.problems += joined(defects, lambda defect: (defect.message, defect.hint, defect.reason))
        if extra:
            self.notes.append(Problem(f"fields that are not used: {_named(extra)}.", name, reason="fields.extra"))


def joined(defects: Sequence[tuple[MalformedRow, Place]], alike: Callable[[MalformedRow], Hashable]) -> list[Problem]:
    """One problem for all defects of which `alike` is equal: the first, and how many more rows have it."""
    found: dict[Hashable, list[tuple[MalformedRow, Place]]] = {}
    for defect, place in defects:
        found.setdefault(alike(defect), []).append((defect, place))
    problems = []
    for (first, begin), *rest in found.values():
        more = ""
        if rest:
            end = rest[-1][1]
            more = f" (and {len(rest)} more rows, up to {end.line if end.file == begin.file else end})"
        problems.append(Problem(first.message + more, str(begin), first.hint, first.reason))
    return problems


def _unread(dialect: Format, value: Mapping[str, object]) -> list[str]:
    used = {*COMMON, *dialect.also, *dialect.keys(value).values()}
    return [key for key in value if key not in used]


def _named(extra: Mapping[str, Mapping[str, object]]) -> str:
    """Fields that no one reads, each with the field it may have been meant for; extra: each with a row that has it."""
    meant = {key: _intended_field(key, value) for key, value in extra.items()}
    return ", ".join(f'{key} (did you mean "{near}"?)' if near else key for key, near in meant.items())


def _intended_field(key: str, value: Mapping[str, object]) -> str:
    """The field whose name is nearly `key`, if the row would be read with it, and all that is read now too."""
    known = {*COMMON, *(also for dialect in FORMATS for also in dialect.also)}
    known |= {name for dialect in FORMATS for names in dialect.slots.values() for name in names.split("|")}
    for near in get_close_matches(key, known - {*value}, n=3, cutoff=0.8):
        renamed = {near if name == key else name: held for name, held in value.items()}
        if {*_unread(detect_format(renamed), renamed)} == {*_unread(detect_format(value), value)} - {key}:
            return near
    return ""


def blank(text: str) -> bool:
    """Whether nothing of the text is seen."""
    return not text.translate(INVISIBLE).strip()


def fold(text: str) -> str:
    """The text without differences that no reader sees: white space, invisible characters, composition."""
    return " ".join(unicodedata.normalize("NFC", text.translate(INVISIBLE)).split())


def check(row: Row) -> None:
    """Raise Unusable where the row teaches nothing."""
    texts = [said(one) for one in responses(row)]
    if any(map(blank, texts)):
        raise SkippedRow("response.empty", "a response is empty.")
    if not isinstance(row.prompt, str):
        for place, turn in enumerate(row.prompt, 1):
            if turn.role in ("user", "assistant") and blank(turn.content):
                raise SkippedRow("turn.empty", f"turn {place} of the prompt is empty.")
    if isinstance(row, Pair):
        if texts[0] == texts[1]:
            raise SkippedRow("pair.identical", "chosen and rejected are the same.")
        if fold(texts[0]) == fold(texts[1]):
            raise SkippedRow("pair.equal_after_folding", "chosen and rejected differ only in what no reader sees.")
    if isinstance(row, Ranking):
        if len(texts) < 2:
            raise SkippedRow("ranking.short", "a ranking needs two responses or more.")
        if len(set(row.ranks)) < 2:
            raise SkippedRow("ranking.tied", "all responses are tied.")
        if len(set(zip(texts, row.ranks, strict=True))) > len(set(texts)):
            raise SkippedRow("ranking.identical", "the same response has two ranks.")


def remarks(rows: Sequence[Row]) -> list[Problem]:
    """What is odd about rows that are kept: each remark once, with its count and first places."""
    tally = Tally()
    seen: dict[tuple[object, ...], Place] = {}
    ids: dict[str, Place] = {}
    for row in rows:
        given = responses(row)
        if row.id and ids.setdefault(row.id, row.place) is not row.place:
            tally.add("id.repeated", "the id is that of an earlier row", row.place)
        label = row.good if isinstance(row, Rating) else row.ranks if isinstance(row, Ranking) else None
        if seen.setdefault((row.prompt, given, label), row.place) is not row.place:
            tally.add("row.duplicate", "the row repeats an earlier one", row.place)
        if isinstance(row, Pair) and (row.prompt, given[::-1], None) in seen:
            tally.add("pair.contradiction", "the pair prefers what another rejects", row.place)
        if isinstance(row, Rating) and row.good is not None and (row.prompt, given, not row.good) in seen:
            tally.add("rating.contradiction", "the rating is the opposite of another", row.place)
        if isinstance(row, Pair) and row.scores and (row.scores[0] <= row.scores[1]):
            tally.add("pair.scores", "rejected has the higher score, or the same", row.place)
        _odd_text(row, tally)
    good = {row.good for row in rows if isinstance(row, Rating) and row.good is not None}
    if len(good) == 1 and len(rows) > 1:
        tally.add("rating.one_class", f"from here on all ratings are {'good' if good.pop() else 'bad'}", rows[0].place)
    return tally.problems()


def _odd_text(row: Row, tally: Tally) -> None:
    prompt = said(row.prompt)
    if blank(prompt):
        tally.add("prompt.empty", "the prompt is empty", row.place)
    roles = [] if isinstance(row.prompt, str) else [*(turn.role for turn in row.prompt), "assistant"]
    if any(one == other != "tool" for one, other in pairwise(roles)):
        tally.add("turn.order", "one speaker has two turns in a row", row.place)
    texts = [said(one) for one in responses(row)]
    if len(prompt) > 20 and any(text.lstrip().startswith(prompt) for text in texts):
        tally.add("response.repeats_prompt", "a response repeats the prompt", row.place)
    if any(text.startswith(HEADERS) for text in texts):
        tally.add("response.header", "a response begins with the name of a speaker", row.place)
    for text in (prompt, *texts):
        if "\0" in text:
            tally.add("text.nul", "the text holds a zero character", row.place)
        if not text.isascii() and not BIDI.isdisjoint(text):
            tally.add("text.bidi", "the text holds characters that turn the direction of reading", row.place)


def refuse_if_too_many(reading: Reading, allowed: float) -> None:
    """Raise UserError where more than the share `allowed` of all rows was left out, or nothing remains."""
    share = len(reading.skipped) / max(reading.read, 1)
    if share <= allowed and reading.rows:
        return
    by_reason: dict[str, list[Problem]] = {}
    for problem in reading.skipped:
        by_reason.setdefault(problem.reason, []).append(problem)
    listed = [
        Problem(
            f"{reason}: {found[0].message[:-1]}{_more([p.location for p in found])}", found[0].location, reason=reason
        )
        for reason, found in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    ]
    hint = f"Mend the file, or allow it: data.max_skipped={min(1.0, share + 0.005):.2f}." if reading.rows else ""
    limit = f"{allowed:.0%} are allowed" if reading.rows else "none is left"
    raise UserError([Problem(f"{len(reading.skipped)} of {reading.read} rows ({share:.1%}) cannot be used; {limit}.",
                             ", ".join(reading.files), hint), *listed])  # fmt: skip


def holdout(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """(train, held out): `share` of the prompts, at least one, with all their rows; the order is kept.

    Which prompts depends on the prompts alone, not on order, on how often one occurs, or on the run's seed: runs that
    differ in their seed are measured on the same rows.
    """
    prompts = {row.prompt: _hashed(row.prompt) for row in rows}
    if len(prompts) < 2:
        raise UserError("all rows have one prompt, so none can be held out.", location="data.holdout",
                        hint="Name held-out rows in data.evaluate.")  # fmt: skip
    number = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    held = set(sorted(prompts, key=lambda prompt: prompts[prompt])[:number])
    return [row for row in rows if row.prompt not in held], [row for row in rows if row.prompt in held]


def _hashed(prompt: Prompt) -> bytes:
    parts = [prompt] if isinstance(prompt, str) else [part for turn in prompt for part in (turn.role, turn.content)]
    return hashlib.sha256("\0".join(parts).encode()).digest()
