// What a run leaves on a node: saved with the workflow, and no step of the user's.
import { app } from "../../../scripts/app.js";

// change(saved) is called with the node as it is in every state of the undo history, the present one included: what a run
// has left is then neither undone nor a step of its own, and a workflow whose other changes are undone keeps it.
function changeStates(node, change) {
  const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
  if (!tracker?.activeState) return;
  if (tracker.activeState === tracker.initialState) tracker.activeState = structuredClone(tracker.activeState);
  for (const state of [tracker.activeState, ...(tracker.undoQueue ?? []), ...(tracker.redoQueue ?? [])]) {
    const inner = (state.definitions?.subgraphs ?? []).find((subgraph) => subgraph.id === node.graph?.id);
    const saved = (inner ?? state).nodes?.find((other) => String(other.id) === String(node.id));
    if (saved?.type === node.type) change(saved);
  }
  tracker.updateModified?.();
}

function makeRoom(saved, size) {
  if (saved.size) saved.size = [0, 1].map((side) => Math.max(saved.size[side], size[side]));
}

// A property of the node. size: [width, height] that the node needs for it.
export function keepThroughUndo(node, name, value, size = [0, 0]) {
  changeStates(node, (saved) => {
    (saved.properties ??= {})[name] = structuredClone(value);
    makeRoom(saved, size);
  });
}

// The size [width, height] that the node has grown to.
export function keepSizeThroughUndo(node, size) {
  changeStates(node, (saved) => makeRoom(saved, size));
}
