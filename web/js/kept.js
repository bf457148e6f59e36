// What a run leaves on a node: saved with the workflow in the node's properties, and no step of the user's.
import { app } from "../../../scripts/app.js";

// Written into the states of the undo history too, a result is neither undone nor a step of its own, and a workflow whose
// other changes are undone keeps it. size: [width, height] that the node needs for it.
export function keepThroughUndo(node, name, value, size = [0, 0]) {
  const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
  if (!tracker?.activeState) return;
  if (tracker.activeState === tracker.initialState) tracker.activeState = structuredClone(tracker.activeState);
  for (const state of [tracker.activeState, ...(tracker.undoQueue ?? []), ...(tracker.redoQueue ?? [])]) {
    const inner = (state.definitions?.subgraphs ?? []).find((subgraph) => subgraph.id === node.graph?.id);
    const saved = (inner ?? state).nodes?.find((other) => String(other.id) === String(node.id));
    if (saved?.type !== node.type) continue;
    (saved.properties ??= {})[name] = structuredClone(value);
    if (saved.size) saved.size = [0, 1].map((side) => Math.max(saved.size[side], size[side]));
  }
  tracker.updateModified?.();
}
