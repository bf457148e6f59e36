"""A search's problems from a file of the user's own, for weights that know nothing of the nano model's world.

Whether a picture is right is asked of the model's encoder, as Best of N does. That is a judge with errors of its own, the
same for every candidate, so what counts is the difference from the plain path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from .. import reflection as r
from ..assistant import Assistant
from ..errors import OmniGen2Error
from ..reflection.requirements import whole_question
from .problems import Problem

FORM = '[{"prompt": "...", "references": ["cat.png"]}, ...]'


@dataclass(frozen=True)
class OwnTasks:
    """Tasks from the JSON file `file`, judged by the encoder of the model that draws them.

    The file holds a list of {"prompt": "...", "references": ["cat.png", ...]}; references are optional, and relative to
    the file. A picture of one reference has that one's size, any other the model's default.

    Raises OmniGen2Error, when the tasks are first asked for, where the file is not so.
    """

    file: Path
    size: None = None
    batch: int = 1

    @cached_property
    def _tasks(self) -> dict[str, list[tuple[str, tuple[Path, ...]]]]:
        tasks: dict[str, list] = {}
        for prompt, references in _read(self.file):
            tasks.setdefault(_kind(len(references)), []).append((prompt, references))
        return dict(sorted(tasks.items()))

    @cached_property
    def name(self) -> str:
        """Another one for other prompts and other references, whose results are none to go on with."""
        digest = hashlib.sha256()
        for kind, tasks in self._tasks.items():
            for prompt, files in tasks:
                digest.update(json.dumps([kind, prompt]).encode())
                for file in files:
                    digest.update(hashlib.sha256(file.read_bytes()).digest())
        return f"own tasks {digest.hexdigest()[:8]}"

    @cached_property
    def kinds(self) -> dict[str, int]:
        """By the number of references, those that the file has."""
        return {kind: len(tasks[0][1]) for kind, tasks in self._tasks.items()}

    def available(self, kind: str, count: int) -> int:
        """See `World`."""
        return min(count, len(self._tasks[kind]))

    def draw(self, pipeline, kind: str, seed: int, start: int, count: int) -> list[Problem]:
        """See `World`."""
        return [
            self._problem(pipeline, prompt, files, seed * 100_003 + i)
            for i, (prompt, files) in enumerate(self._tasks[kind][start : start + count], start)
        ]

    def _problem(self, pipeline, prompt: str, files: Sequence[Path], seed: int) -> Problem:
        assistant = pipeline.assistant()
        references = tuple(Image.open(file) for file in files)
        return Problem(prompt, references, seed, lambda picture: approves(assistant, prompt, references, picture))


def approves(assistant: Assistant, prompt: str, references: Sequence[Image.Image], picture: Image.Image) -> bool:
    """Whether it is likelier than not, to the encoder, that a picture shows all that was asked for."""
    verifier = r.QuestionVerifier(r.model_looker(assistant), lambda task: [whole_question(task)], pairwise=False)
    return verifier.examiner(r.Task(prompt, tuple(references))).score(picture).least > 0.5


def _kind(references: int) -> str:
    return f"{references} reference" + ("" if references == 1 else "s")


def _read(file: Path) -> list[tuple[str, tuple[Path, ...]]]:
    """Prompts and reference files. Raises OmniGen2Error where the file is not as it should be."""
    try:
        rows: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OmniGen2Error(f"{file} cannot be read as JSON ({error}); write {FORM}.") from None
    if not isinstance(rows, list) or not rows:
        raise OmniGen2Error(f"{file} has no list of tasks; write {FORM}.")
    tasks = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not str(row.get("prompt", "")).strip():
            raise OmniGen2Error(f"Task {number} of {file} has no prompt; write {FORM}.")
        files = tuple(file.parent / name for name in row.get("references", ()))
        missing = next((path for path in files if not path.is_file()), None)
        if missing:
            raise OmniGen2Error(f"Task {number} of {file} refers to {missing}, which is not there; references are relative to the file.")
        tasks.append((row["prompt"], files))
    return tasks
