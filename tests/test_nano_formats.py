"""The score of each weight format: the same problems for all, what is kept, and the bars."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from omnigen2_core.nano import formats, score
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.nano.formats import STORED, WORLD, compare, holds, measure_formats, table
from omnigen2_core.nano.score import TASKS, draw_tasks


def verdicts(wrong: int, count: int = 20) -> dict[str, str]:
    """`count` pictures of each kind, so many of the first kind wrong."""
    return {kind: "0" * wrong * (kind == "t2i_1") + "1" * (count - wrong * (kind == "t2i_1")) for kind in WORLD.kinds}


@pytest.fixture
def drawn(monkeypatch):
    """Formats are not really made and drawn; which were, by their names."""
    made: list[str] = []

    def draw(pool, folder, seed, count):
        made.append(folder.name)
        return verdicts(1)

    monkeypatch.setattr(formats, "start_processes", lambda count: nullcontext(SimpleNamespace()))
    monkeypatch.setattr(formats, "convert", lambda source, out, name: None)
    monkeypatch.setattr(formats, "_draw", draw)
    return made


def test_the_problems_are_those_of_the_score():
    assert tuple(WORLD.kinds) == TASKS
    for kind, references in WORLD.kinds.items():
        problems, tasks = WORLD.draw(None, kind, 1, 0, 2), draw_tasks(kind, 1, 2)
        assert [problem.prompt for problem in problems] == [task.prompt for task in tasks]
        assert all(len(problem.references) == references for problem in problems)
        assert [problem.seed for problem in problems] == [100_003, 100_004]


def test_the_stored_weights_come_first_and_what_is_known_is_not_drawn_again(tmp_path, drawn):
    file = tmp_path / "formats.json"
    found = measure_formats(WEIGHTS, ["q5_k"], 1, 20, 2, file)
    assert list(found) == [STORED, "q5_k"] and drawn == [WEIGHTS.name, "q5_k"]
    assert json.loads(file.read_text())["count"] == 24
    measure_formats(WEIGHTS, ["q5_k", "fp8"], 1, 24, 2, file)
    assert drawn == [WEIGHTS.name, "q5_k", "fp8"]
    measure_formats(WEIGHTS, ["fp8"], 2, 24, 2, file)
    assert drawn[3:] == [WEIGHTS.name, "fp8"]


def test_a_format_is_compared_picture_by_picture():
    found = {STORED: verdicts(0), "q5_k": verdicts(1), "q4_0": verdicts(9)}
    rate, change = compare(found, "q5_k")
    assert (rate["rate"], rate["n"], change["rate"]) == (0.99, 100, pytest.approx(-0.01))
    text = table(found)
    assert "-1.0" in text and text.splitlines()[2].endswith("-1  too few to tell") and len(text.splitlines()) == 4


def test_formats_down_to_q5_k_have_a_bar_and_smaller_ones_none():
    assert holds({STORED: verdicts(0, 200), "q5_k": verdicts(1, 200), "q4_0": verdicts(90, 200)})
    assert not holds({STORED: verdicts(0, 200), "q5_k": verdicts(9, 200)})


def test_a_format_whose_change_is_too_noisy_to_tell_does_not_hold():
    found = {STORED: verdicts(0), "q5_k": verdicts(1)}
    assert compare(found, "q5_k")[1]["rate"] == pytest.approx(-0.01) and not holds(found)


def test_the_command_scores_all_formats_or_those_named(monkeypatch, capsys):
    asked = []

    def measure(model, names, seed, count, processes, file):
        asked.append((list(names), count))
        return {STORED: verdicts(0), "q5_k": verdicts(2)}

    monkeypatch.setattr(formats, "measure_formats", measure)
    assert score.main(["--formats"]) == score.main(["--formats", "q5_k", "q8_0", "--count", "48"]) == 1
    assert len(asked[0][0]) == 8 and asked[0][1] == 96 and asked[1] == (["q5_k", "q8_0"], 48)
    with pytest.raises(SystemExit):
        score.main(["--formats", "q9"])
