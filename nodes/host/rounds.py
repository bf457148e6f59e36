"""The rounds of a run as a node shows and keeps them: their pictures are files, all else is one JSON value."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping, Sequence

import comfy.model_management
import folder_paths
from comfy_api.latest import io, ui
from PIL import Image

from ...omnigen2_core.errors import ReflectionError
from ...omnigen2_core.images import content_mark, to_image_tensor, to_rgb
from ...omnigen2_core.reflection import Record, Round, Stage, Task, from_dict, to_dict
from ...omnigen2_core.transformer import MAX_REFERENCES
from .page import tell_page

FOLDER = "omnigen2_rounds"
"""Below the output folder."""
EVENT = "omnigen2.rounds"
"""The event that web/js/reflection.js listens to: {"node", "prompt_id", "rounds", "stage", "round"}."""
ROUNDS = "omnigen2_rounds"
"""The key of a node's output under which it finds the same rounds in the end."""
MOST_EARLIER = 24
"""Rounds of earlier runs that a run goes on with, so that a record does not grow with every pick. A loop makes fewer."""


class Rounds:
    """A record, the files of its pictures, and the page that is told as they come. Made for one run.

    `on_stage` and `on_round` are what `reflect` and `best_of` take as callbacks. Use as a context: whatever ends the
    run, the pictures drawn so far are written, and the page gets to know them.
    """

    def __init__(self, node: type[io.ComfyNode], record: Record, names: Sequence[str] = ()):
        """names: the files of the rounds that the record already has."""
        self.node = node
        self.record = record
        self.names = list(names)

    def __enter__(self) -> "Rounds":
        return self

    def __exit__(self, *_: Any) -> None:
        self._keep()
        self._tell()

    def on_stage(self, stage: Stage, index: int) -> None:
        """A stage of a round begins. Raises ComfyUI's exception when the run was cancelled."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._tell(stage.value, index)

    def on_round(self, finished: Round, record: Record) -> None:
        """A round is finished. Raises ComfyUI's exception when the run was cancelled."""
        self._keep()
        self._tell()
        comfy.model_management.throw_exception_if_processing_interrupted()

    def values(self) -> dict[str, Any]:
        """The transcript, with the names of the pictures below the output folder, and marks of the references."""
        marks = [content_mark(picture)[:16] for picture in self.record.task.references]
        return {**to_dict(self.record), "pictures": list(self.names), "reference_marks": marks}

    def to_json(self) -> str:
        """`values` as text, with every script readable."""
        return json.dumps(self.values(), ensure_ascii=False, indent=1, allow_nan=False)

    def _keep(self) -> None:
        for entry in self.record.rounds[len(self.names) :]:
            # ComfyUI's helper cuts off where it should round, and a picture that is gone on from must be the same.
            image = (to_image_tensor(entry.picture) * 255.0 + 0.5) / 255.0
            # The content is in the name: in the output folder of another machine, or in one that was emptied, a name
            # would else soon stand for another picture.
            prefix = f"{FOLDER}/round_{content_mark(entry.picture)[:12]}"
            [file] = ui.ImageSaveHelper.save_images(image, prefix, io.FolderType.output, self.node)
            self.names.append("/".join([*Path(file["subfolder"]).parts, file["filename"]]))

    def _tell(self, stage: str = "", index: int = -1) -> None:
        tell_page(EVENT, self.node.hidden.unique_id, rounds=self.values(), stage=stage, round=index)


def picked_record(task: Task, earlier: str, pick: int, judge: str) -> tuple[Record, list[str], list[str]]:
    """The record to go on with from a round that was picked, the files of its pictures, and notes for the user.

    earlier: `Rounds.to_json` of the run that it was picked from. For another prompt, other references or another judge,
    whose scores are none to compare with, the picture alone is taken over, to be judged anew. Raises ReflectionError
    when the rounds cannot be read, have no such round, or its picture is gone.
    """
    if not earlier.strip():
        raise ReflectionError(
            f"Round {pick} is picked, but earlier_rounds is empty; choose a round on the node, or set pick to -1 to "
            "draw anew."
        )
    values = _parse(earlier)
    names = values["pictures"]
    if not 0 <= pick < len(names):
        raise ReflectionError(
            f"Round {pick} is picked, but there are {len(names)} earlier rounds, counted from 0; pick one of them, or "
            "set pick to -1 to draw anew."
        )
    listed = _listed(values, task)
    chosen = listed.rounds[pick]
    changed = _changed(values, task, chosen, judge)
    if not changed:
        return _opened(listed, names, pick)
    record = Record(task)
    record.give(_open(names[pick]), prompt=chosen.prompt, seed=chosen.seed, settings={"judge": judge})
    note = f"The {changed} changed since round {pick} was drawn, so its picture alone was taken over and judged anew."
    return record, [names[pick]], [note]


def _listed(values: Mapping[str, Any], task: Task) -> Record:
    """The record of a transcript, of this task if it was made for another, with blank pictures in place of its own."""
    blank = Image.new("RGB", (1, 1))
    references = values.get("references")
    count = references if isinstance(references, int) and 0 <= references <= MAX_REFERENCES else len(task.references)
    listed = from_dict(values, [blank] * len(values["pictures"]), [blank] * count)
    listed.task = task
    return listed


def _changed(values: Mapping[str, Any], task: Task, chosen: Round, judge: str) -> str:
    """What is another than when a round was made; empty where nothing is."""
    if values["instruction"] != task.instruction:
        return "prompt"
    if values.get("reference_marks") != [content_mark(picture)[:16] for picture in task.references]:
        return "references"
    return "" if chosen.settings.get("judge") == judge else "judge"


def _opened(listed: Record, names: Sequence[str], pick: int) -> tuple[Record, list[str], list[str]]:
    """As `picked_record`, from a record of all earlier rounds without their pictures.

    A round whose picture is gone is left out, so that it does not keep the user from the others; so are those beyond
    MOST_EARLIER, of which the picked one, those that led to it and the newest are kept.
    """
    by_need = [listed.rounds[pick], *reversed(listed.lineage(pick)), *reversed(listed.rounds)]
    wanted = list(dict.fromkeys(entry.index for entry in by_need))[:MOST_EARLIER]
    pictures, gone = {pick: _open(names[pick])}, []
    for index in wanted[1:]:
        try:
            pictures[index] = _open(names[index])
        except ReflectionError:
            gone.append(index)
    places = {index: place for place, index in enumerate(sorted(pictures))}
    record = Record(listed.task)
    for index, place in places.items():
        entry = listed.rounds[index]
        parent = places.get(entry.parent)
        record.rounds.append(replace(entry, index=place, parent=parent, picture=pictures[index]))
    record.pick(places[pick])
    return record, [names[index] for index in places], _notes_on_left_out(len(names), len(wanted), sorted(gone), pick)


def _notes_on_left_out(count: int, wanted: int, gone: Sequence[int], pick: int) -> list[str]:
    notes = []
    if count > wanted:
        notes.append(
            f"Of {count} earlier rounds the run went on with {wanted}, under new numbers: round {pick}, those that led to it, "
            "and the newest."
        )
    if gone:
        rounds = ", ".join(map(str, gone))
        notes.append(f"Earlier rounds whose pictures cannot be read were left out: {rounds}, by their old numbers.")
    return notes


def _parse(text: str) -> Mapping[str, Any]:
    try:
        values = json.loads(text)
        names = values["pictures"]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return values
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ReflectionError(
        "earlier_rounds is no transcript of this node; choose a round on the node, or set pick to -1 to draw anew."
    )


def _open(name: str) -> Image.Image:
    """A round's picture. The name may come with a stranger's workflow, so nothing outside the output folder is read."""
    folder = folder_paths.get_output_directory()
    path = os.path.join(folder, *name.split("/"))
    try:
        if not folder_paths.is_within_directory(folder, path):
            raise OSError("it is not in the output folder")
        with Image.open(path) as picture:
            return to_rgb(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ReflectionError(
            f"The picture {name[:120]!r} of an earlier round cannot be read ({type(error).__name__}); set pick to -1 to "
            "draw anew."
        ) from error
