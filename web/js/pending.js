// The messages of chats that have no answer yet. They are not kept on their nodes, which are made anew by undo and whenever
// their workflow is opened again.
import { findNode } from "./notes.js";
import { isOnCanvas } from "./runs.js";

// {request, path, message, detail}, see whenQueued: the run, the node, what was asked or the link that brings it, and what was
// last told of the answer.
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

// Whether a run may be the one that is to answer a turn: until the server has taken the turn's prompt, any.
export function isOfRun({ request }, run) {
  return (request.run ?? run) === run;
}

// Takes note of what a run tells of an answer while it is made.
export function follow(detail) {
  const turn = pending.find((other) => other.path === String(detail.node) && isOfRun(other, detail.prompt_id));
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
