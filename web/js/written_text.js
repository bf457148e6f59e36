// Shows what OmniGen2 Ask and OmniGen2 Enhance Prompt write: while they do, and once more with the result, which comes alone
// where ComfyUI had kept it and did not run them, as after opening the workflow again. Python has encoded the text so that it
// can be no markup.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { findNode } from "./notes.js";
import { isForCanvas, whenExecuted } from "./runs.js";

const EVENT = "omnigen2.text";

// The frontend would put it on whatever node has that number in the graph that is in view.
function show(path, text) {
  if (findNode(path)?.graph !== app.canvas?.graph) return;
  api.dispatchCustomEvent("progress_text", { nodeId: String(path), text });
}

app.registerExtension({
  name: "OmniGen2.WrittenText",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      if (isForCanvas(detail.prompt_id)) show(detail.node, detail.text);
    });
    whenExecuted((path, output) => {
      const [text] = output.omnigen2_text ?? [];
      if (text) show(path, text);
    });
  },
});
