"""A record as text to read and as JSON to keep. Pictures are not in it: they are files of the caller's, by round.

Texts in a transcript were written by a model and may hold anything; show them as text, never as markup.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from types import NoneType
from typing import Any, Callable, Mapping, Sequence

from PIL import Image

from ..errors import ReflectionError
from .opinion import Reflection, Scope, Verdict
from .record import Record, Round, Stop
from .redraw import Origin
from .score import Check, Score
from .task import Task

FORMAT = "omnigen2.reflection"
VERSION = 1


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a transcript can keep them. Raises ReflectionError for values that are not JSON."""
    try:
        return json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ReflectionError(f"The settings cannot be kept in a transcript: {error}. Give plain values.") from error


def to_dict(record: Record) -> dict[str, Any]:
    """A record as JSON-ready values; `from_dict` reads them back."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "instruction": record.task.instruction,
        "references": len(record.task.references),
        "best": record.best_index,
        "picked": record.picked,
        "picked_at": record.picked_at,
        "stop": record.stop.value if record.stop else None,
        "rounds": [_round_to_dict(entry) for entry in record.rounds],
    }


def to_json(record: Record) -> str:
    """`to_dict` as text, with every script readable."""
    return json.dumps(to_dict(record), ensure_ascii=False, indent=1, allow_nan=False)


def from_dict(
    values: Mapping[str, Any], pictures: Sequence[Image.Image], references: Sequence[Image.Image] = ()
) -> Record:
    """The record that `to_dict` wrote, with the pictures of its rounds and the references in their order.

    Raises ReflectionError when it is no transcript, or pictures and rounds do not match.
    """
    if not isinstance(values, Mapping) or values.get("format") != FORMAT or values.get("version") != VERSION:
        raise ReflectionError("This is no reflection transcript of this version; run the loop again to make one.")
    try:
        listed = values["rounds"]
        if len(listed) != len(pictures) or values["references"] != len(references):
            raise ReflectionError(
                f"The transcript has {len(listed)} rounds and {values['references']} references, but there are "
                f"{len(pictures)} pictures and {len(references)} references; give those of its run, in order."
            )
        record = Record(Task(_kept(values, "instruction", str), tuple(references)))
        for index, (entry, picture) in enumerate(zip(listed, pictures)):
            record.rounds.append(_round_from_dict(index, entry, picture))
        record.best_index = _index(values["best"], len(listed))
        record.picked = _index(values["picked"], len(listed))
        record.picked_at = _index(values["picked_at"], len(listed) + 1) or 0
        record.stop = Stop(values["stop"]) if values["stop"] else None
        return record
    except ReflectionError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ReflectionError(f"The transcript is damaged ({error!r}); run the loop again to make one.") from error


def to_text(record: Record, name: Callable[[int], str] = "round {}".format) -> str:
    """A record to read: the instruction, every round in a few lines, and the outcome.

    name: what the round of an index is called.
    """
    lines = [f"Instruction: {_inline(record.task.instruction)}"]
    for entry in record.rounds:
        lines += ["", *_round_lines(entry, name)]
    lines.append("")
    if record.stop is not None:
        lines.append(f"Ended: {record.stop.value}.")
    if record.best_index is not None:
        lines.append(f"Best: {name(record.best_index)}.")
    return "\n".join(lines)


def _round_lines(entry: Round, name: Callable[[int], str]) -> list[str]:
    seed = "" if entry.seed is None else f", seed {entry.seed}"
    after = "" if entry.parent is None else f" after {name(entry.parent)}"
    time = f", {sum(entry.seconds.values()):.1f} s" if entry.seconds else ""
    made = f"{name(entry.index).capitalize()}: {entry.origin.value}{after}{seed}{time}"
    lines = [made, f"  Prompt: {_inline(entry.prompt)}"]
    value = "none" if entry.score.value is None else f"{entry.score.value:.3f}"
    lines.append(f"  Score: {value}{' - ' + entry.score.note if entry.score.note else ''}")
    for check in entry.score.checks:
        chance = "no answer" if check.probability is None else f"{check.probability:.2f}"
        lines.append(f"    {chance}  {_inline(check.question)}")
    said = entry.reflection
    if said is not None:
        lines.append(f"  Verdict: {said.verdict.value}{' - ' + said.note if said.note else ''}")
        named = (("Problem", said.problem), ("Correction", said.correction))
        lines += [f"  {name}: {_inline(text)}" for name, text in named if text]
        if said.verdict is Verdict.NO_OPINION:
            lines += [f"  Answer: {_inline(answer) or '(empty)'}" for answer in said.answers]
    if entry.helped is not None:
        lines.append(f"  Better than the best before: {'yes' if entry.helped else 'no'}")
    if entry.settings:
        lines.append("  Settings: " + ", ".join(f"{name} {value}" for name, value in entry.settings.items()))
    return lines


def _inline(text: str) -> str:
    """Text on one line, so that nothing a model wrote can look like a line of the transcript."""
    return " / ".join(text.split("\n")).replace("\r", " ").strip()


def _round_to_dict(entry: Round) -> dict[str, Any]:
    said, score = entry.reflection, entry.score
    return {
        "index": entry.index,
        "origin": entry.origin.value,
        "prompt": entry.prompt,
        "seed": entry.seed,
        "parent": entry.parent,
        "helped": entry.helped,
        "score": {"value": score.value, "checks": [asdict(check) for check in score.checks], "note": score.note},
        "reflection": said
        and {**asdict(said), "verdict": said.verdict.value, "scope": said.scope and said.scope.value},
        "seconds": {stage: round(time, 3) for stage, time in entry.seconds.items()},
        "settings": dict(entry.settings),
    }


def _round_from_dict(index: int, values: Mapping[str, Any], picture: Image.Image) -> Round:
    checks = tuple(_check_from_dict(check) for check in values["score"]["checks"])
    score = Score(checks, _kept(values["score"], "note", str))
    said = None if values["reflection"] is None else _reflection_from_dict(values["reflection"])
    prompt, seed = _kept(values, "prompt", str), _kept(values, "seed", int, NoneType)
    made = (Origin(values["origin"]), prompt, seed, _index(values["parent"], index))
    seconds, settings = _kept(values, "seconds", dict), _kept(values, "settings", dict)
    for time in seconds.values():
        _check_number("seconds", time, sys.float_info.max)
    return Round(index, picture, *made, score, said, _kept(values, "helped", bool, NoneType), seconds, settings)


def _check_from_dict(values: Mapping[str, Any]) -> Check:
    if values["probability"] is not None:
        _check_number("probability", values["probability"], 1)
    for name in ("question", "answer"):
        _kept(values, name, str)
    return Check(**values)


def _reflection_from_dict(values: Mapping[str, Any]) -> Reflection:
    for name in ("problem", "correction", "prompt", "note"):
        _kept(values, name, str)
    answers = tuple(_kept(values, "answers", list, tuple))
    if not all(isinstance(answer, str) for answer in answers):
        raise TypeError("an answer is no text")
    scope = Scope(values["scope"]) if values["scope"] else None
    return Reflection(**{**values, "verdict": Verdict(values["verdict"]), "scope": scope, "answers": answers})


def _kept(values: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A value if it is of one of the kinds. What is built from a transcript does not check, and would fail later."""
    value = values[name]
    # To Python a bool is an int.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{name} is {value!r:.60}")
    return value


def _check_number(name: str, value: Any, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r:.60}")


def _index(value: Any, count: int) -> int | None:
    """A place among `count`, or None. A parent that is no earlier round would make a circle of the rounds."""
    if value is None or (type(value) is int and 0 <= value < count):
        return value
    raise ValueError(f"{value!r} is no place among {count}")
