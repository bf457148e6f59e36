// The canvas has shortcuts of one letter, and Delete removes the node. What is pressed on an element of a node stays
// there, but for what goes with Ctrl or Cmd, such as running the workflow.
export function keepKey(event) {
  if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
}
