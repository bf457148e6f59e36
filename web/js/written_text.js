// Shows what OmniGen2 Ask and OmniGen2 Enhance Prompt wrote where ComfyUI had kept their result and did not run them, as
// after opening the workflow again: the text then comes with the result alone. Python has encoded it as it does while it is
// written, so that it can be no markup.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { whenExecuted } from "./runs.js";

app.registerExtension({
  name: "OmniGen2.WrittenText",
  setup() {
    whenExecuted((path, output) => {
      const [text] = output.omnigen2_text ?? [];
      if (text) api.dispatchCustomEvent("progress_text", { nodeId: String(path), text });
    });
  },
});
