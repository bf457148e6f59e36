// Shows what an OmniGen2 node has to say about its last run (a cut prompt, a small reference, a snapped size)
// on the node itself. Notes are text from Python and possibly from a user's file name: they are only ever set
// as textContent. Below them a sampler says what its run cost, more quietly.
import { app } from "../../../scripts/app.js";
import { keepSizeThroughUndo } from "./kept.js";
import { whenExecuted } from "./runs.js";
import { NOTES, inLocale } from "./words.js";

const WIDGET = "omnigen2_notes";
const LINE_HEIGHT = 18;
const LETTER_WIDTH = 6.4;
// Padding of the box, and the margin that the canvas leaves around an element in a node.
const BESIDE_TEXT = 50;
const ABOVE_AND_BELOW = 30;

function element() {
  const box = document.createElement("div");
  box.setAttribute("role", "status");
  box.setAttribute("aria-live", "polite");
  box.setAttribute("aria-label", inLocale(NOTES));
  box.style.cssText =
    "font: 12px/18px sans-serif; padding: 4px 8px; overflow-y: auto; border-left: 3px solid; " +
    "color: var(--input-text, #ddd); border-radius: 4px;";
  return box;
}

// Inside a subgraph the server names a node "12:3": node 3 of the subgraph held by node 12.
export function findNode(path) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id));
    graph = node?.subgraph;
  }
  return node;
}

// The nodes of a graph and of the subgraphs in it.
export function allNodes(graph = app.rootGraph ?? app.graph) {
  return (graph?.nodes ?? []).flatMap((node) => [node, ...(node.subgraph ? allNodes(node.subgraph) : [])]);
}

function show(node, notes, readout) {
  let widget = node.widgets?.find((w) => w.name === WIDGET);
  if (!notes.length && !readout.length) {
    if (widget) node.removeWidget(widget);
    return;
  }
  if (!widget) {
    widget = node.addDOMWidget(WIDGET, WIDGET, element(), {
      serialize: false,
      getValue: () => "",
      setValue: () => {},
      getMinHeight: () => widget.lines * LINE_HEIGHT + ABOVE_AND_BELOW,
    });
    // options.serialize keeps it out of the prompt, this keeps it out of the saved workflow.
    widget.serialize = false;
  }
  const letters = Math.max(20, (node.size[0] - BESIDE_TEXT) / LETTER_WIDTH);
  const lines = [...notes, ...readout];
  widget.lines = lines.reduce((n, text) => n + Math.ceil(text.length / letters), 0);
  widget.element.style.borderColor = notes.length ? "#d9a441" : "transparent";
  widget.element.style.background = notes.length ? "rgba(217, 164, 65, 0.12)" : "none";
  widget.element.replaceChildren(
    ...lines.map((text, i) => {
      const line = document.createElement("div");
      line.textContent = text;
      if (i >= notes.length) line.style.opacity = 0.7;
      return line;
    }),
  );
  const [width, height] = node.computeSize();
  if (width > node.size[0] || height > node.size[1]) {
    const size = [Math.max(node.size[0], width), Math.max(node.size[1], height)];
    node.setSize?.(size);
    keepSizeThroughUndo(node, size);
  }
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "OmniGen2.Notes",
  setup() {
    whenExecuted((path, output) => {
      const node = findNode(path);
      if (node?.type?.startsWith("OmniGen2")) show(node, output.omnigen2_notes ?? [], output.omnigen2_readout ?? []);
    });
  },
});
