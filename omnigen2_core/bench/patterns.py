"""What the presets computed and what they left out on the built-in model, and what that cost in right pictures.

Random weights make no honest decisions to skip. So the pattern is taken from runs of the built-in model: of the search
of record (`python dev.py presets`) where its results are kept, so that pattern and score belong together, else of one
run here, and then no score is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..acceleration.pattern import record_of
from ..acceleration.presets import PRESETS
from ..acceleration.protocol import Work
from ..checkpoints import ModelFolder
from ..nano.candidates import of_preset
from ..nano.folder import WEIGHTS
from ..nano.problems import FIRST
from ..nano.results import fingerprint
from ..nano.score import paired
from .cases import TASKS
from .verdict import Estimate

KEPT = Path(__file__).resolve().parent.parent / "nano" / "logs" / "presets.jsonl"
KINDS = {task: next(kind for kind, some in FIRST.kinds.items() if some == count) for task, count in TASKS.items()}
"""The built-in model's kinds of problem, by our tasks."""
PLAIN = PRESETS["exact"]
Records = dict[tuple[str, str], list[list[Work]]]
"""By preset and task: what each batch did."""


@dataclass(frozen=True)
class Patterns:
    """Records, and by how many points of a hundred more or fewer pictures are right than with the plain path (none: not known).

    source: where they are from. on_other_weights: whether the built-in model has other weights by now.
    """

    records: Records
    change: Mapping[tuple[str, str], Estimate]
    source: str
    on_other_weights: bool = False


def kept_patterns(path: Path = KEPT) -> Patterns | None:
    """Those of kept results, None where these do not tell of the presets as they are now. See `nano.results.Batch`."""
    if not path.is_file():
        return None
    batches: dict[tuple[str, str], dict[int, dict]] = {}
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        batch = json.loads(line)
        if batch["world"] == FIRST.name:
            batches.setdefault((batch["candidate"], batch["kind"]), {})[batch["start"]] = batch
    records: Records = {}
    changes: dict[tuple[str, str], Estimate] = {}
    for task, kind in KINDS.items():
        plain = batches.get((str(of_preset(PLAIN)), kind))
        for name, preset in PRESETS.items():
            own = batches.get((str(of_preset(preset)), kind))
            if not own or not plain:
                return None
            records[name, task] = [record_of(batch["pattern"]) for _, batch in sorted(own.items())]
            changes[name, task] = _points_gained(plain, own)
    shipped = fingerprint(ModelFolder(WEIGHTS))
    return Patterns(records, changes, path.name, on_other_weights=json.loads(header)["weights"] != shipped)


def _points_gained(plain: Mapping[int, dict], own: Mapping[int, dict]) -> Estimate:
    """Change in right pictures, in points, on the problems that both have drawn, with the 95 % interval."""
    both = sorted(plain.keys() & own.keys())
    before, after = ([letter == "1" for start in both for letter in some[start]["right"]] for some in (plain, own))
    change = paired(after, before)
    return Estimate(*(100 * change[name] for name in ("rate", "low", "high")))
