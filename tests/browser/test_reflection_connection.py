"""Rounds and their pictures where the page was not connected, was loaded anew, or the server ended."""
from __future__ import annotations

from browser_harness import PATIENCE
from playwright.sync_api import expect
from reflection_nodes import LOADED, SLOWLY, add_board, board, kept, labels

FAILED = """() => {
    const images = [...document.querySelectorAll('.omnigen2-rounds img')];
    return images.length > 0 && images.every(image => image.complete && image.naturalWidth === 0);
}"""
RUN = """async () => {
    const begun = new Promise(resolve => app.api.addEventListener('execution_start', ({detail}) => resolve(detail.prompt_id), {once: true}));
    await app.queuePrompt(0, 1);
    return await begun;
}"""
SECOND_PICTURE = {"at": "omnigen2.rounds", "when": "({stage, round}) => stage === 'draw' && round === 1"}


def test_rounds_that_came_while_the_page_was_not_connected_are_shown_when_it_is_again(loop, canvas):
    with canvas.disconnected(**SECOND_PICTURE):
        canvas.server.wait(canvas.evaluate(RUN))
        expect(board(canvas).get_by_role("status")).to_have_text("Round 1: drawing …", timeout=PATIENCE)
        assert labels(canvas) == ["Round 0 · best, drawn, not satisfied, 0.30"]
    expect(board(canvas).get_by_role("status")).to_have_text("Ended: the picture is right.", timeout=PATIENCE)
    assert labels(canvas) == ["Round 0, drawn, not satisfied, 0.30", "Round 1 · best, edited, satisfied, 0.90"]
    assert canvas.errors == []


def test_rounds_that_came_while_the_page_was_loaded_anew_are_shown_when_it_is_there(open_canvas, folder):
    canvas = open_canvas()
    canvas.reset()
    loop = add_board(canvas, folder)
    canvas.evaluate(SLOWLY, [loop, 0.2, 25])
    run = canvas.evaluate(RUN)
    with canvas.loaded_anew():
        canvas.server.wait(run)
    expect(board(canvas).get_by_role("status")).to_have_text("Ended: the picture is right.", timeout=PATIENCE)
    assert labels(canvas) == ["Round 0, drawn, not satisfied, 0.30", "Round 1 · best, edited, satisfied, 0.90"]
    assert canvas.errors == []


def test_rounds_of_a_run_that_ended_with_the_server_are_those_of_a_run_that_was_stopped(loop, canvas):
    with canvas.disconnected(**SECOND_PICTURE):
        canvas.server.forget(canvas.evaluate(RUN))
    stopped = "Stopped before the end; what was finished is kept."
    expect(board(canvas).get_by_role("status")).to_have_text(stopped, timeout=PATIENCE)
    assert labels(canvas) == ["Round 0 · best, drawn, not satisfied, 0.30"]
    assert kept(canvas, loop)["stop"] == "stopped before the end"
    assert canvas.errors == []


def test_pictures_that_could_not_be_had_are_asked_for_when_the_page_is_connected_again(loop, canvas):
    with canvas.no_pictures():
        canvas.run()
        canvas.page.wait_for_function(FAILED)
    with canvas.disconnected():
        pass
    canvas.page.wait_for_function(LOADED)
    assert len(labels(canvas)) == 2
