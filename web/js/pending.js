// The messages of chats that have no answer yet. They are not kept on their nodes, which are made anew by undo and whenever
// their workflow is opened again.
import { findNode } from "./notes.js";
import { isOnCanvas } from "./runs.js";

// {request, path, message, detail}, see whenQueued: the run, the node, what was asked, and what was last told of the answer.
let pending = [];

export function wait(turns) {
  pending.push(...turns);
}

// Those of the workflow on the canvas.
export function pendingHere() {
  return pending.filter(({ request }) => isOnCanvas(request.owner));
}

export function pendingOf(node) {
  return pendingHere().filter(({ path }) => findNode(path) === node);
}

// Takes note of what a run tells of an answer while it is made.
export function follow(detail) {
  const isOfRun = ({ request }) => (request.run ?? detail.prompt_id) === detail.prompt_id;
  const turn = pending.find((other) => other.path === String(detail.node) && isOfRun(other));
  if (turn) turn.detail = detail;
}

// Whether a turn was pending; it is not any more.
export function forget(turn) {
  const others = pending.filter((other) => other !== turn);
  const known = others.length < pending.length;
  pending = others;
  return known;
}

export function forgetAll() {
  pending = [];
}
