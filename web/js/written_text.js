// Shows what OmniGen2 Ask and OmniGen2 Enhance Prompt write: while they do, and once more with the result, which comes alone
// where ComfyUI had kept it and did not run them, as after opening the workflow again. Python has encoded the text so that it
// can be no markup.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { findNode } from "./notes.js";
import { isForCanvas, whenEnded, whenExecuted } from "./runs.js";

const EVENT = "omnigen2.text";

// The frontend passes over progress text that is empty.
const BLANK = "\u200b";

// The nodes that are written on, by their paths.
const unfinished = new Map();

// What the frontend calls the text on a node.
const WIDGET = "$$node-text-preview";

// The frontend would put it on whatever node has that number in the graph that is in view. A node out of view that has shown
// text before goes on showing that when it is looked at again.
function show(path, text) {
  const node = findNode(path);
  const shown = node?.widgets?.find(({ name }) => name === WIDGET);
  if (shown) shown.value = text || BLANK;
  else if (node?.graph === app.canvas?.graph) {
    api.dispatchCustomEvent("progress_text", { nodeId: String(path), text: text || BLANK });
  }
}

app.registerExtension({
  name: "OmniGen2.WrittenText",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      if (!isForCanvas(detail.prompt_id)) return;
      unfinished.set(detail.node, findNode(detail.node));
      show(detail.node, detail.text);
    });
    whenExecuted((path, output) => {
      const [text] = output.omnigen2_text ?? [];
      if (text === undefined) return;
      unfinished.delete(path);
      show(path, text);
    });
    // Half an answer could be taken for a whole one. A node that was made anew since has none.
    whenEnded(() => {
      for (const [path, node] of unfinished) if (findNode(path) === node) show(path, "");
      unfinished.clear();
    });
  },
});
