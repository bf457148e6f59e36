// A button on OmniGen2 Enhance Prompt that puts the last rewritten prompt into the field `edited`, where the user
// changes it. It is only ever set as the value of a text field.
import { app } from "../../../scripts/app.js";
import { keepKey } from "./keys.js";
import { findNode } from "./notes.js";
import { whenExecuted } from "./runs.js";
import { EDIT_PROMPT, inLocale } from "./words.js";

const NODE = "OmniGen2EnhancePrompt";
const WIDGET = "omnigen2_edit_prompt";
const HEIGHT = 32;

const STYLE =
  "width: 100%; height: 100%; font: 13px sans-serif; border: 1px solid var(--border-color, #555); border-radius: 4px; " +
  "background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); cursor: pointer;";

// For each node its button and the last rewritten prompt.
const rewritten = new WeakMap();

// An element of the page and not a button of the canvas, which no keyboard reaches and no screen reader names.
function addButton(node) {
  const edited = node.widgets.find((widget) => widget.name === "edited");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = inLocale(EDIT_PROMPT);
  button.style.cssText = STYLE;
  button.dataset.omnigen2EditPrompt = "";
  button.addEventListener("click", () => {
    const { text } = rewritten.get(node);
    if (!text) return;
    edited.value = text;
    edited.callback?.(text);
    node.setDirtyCanvas?.(true, true);
    const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
    (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
  });
  button.addEventListener("keydown", keepKey);
  const widget = node.addDOMWidget(WIDGET, WIDGET, button, {
    serialize: false,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: () => HEIGHT,
    getMaxHeight: () => HEIGHT,
  });
  // options.serialize keeps it out of the prompt, this keeps it out of the saved widget values.
  widget.serialize = false;
  rewritten.set(node, { button, text: "" });
}

// Nodes 2.0 goes on showing the element of a node that undo has made anew; that of the new node takes its place.
function takePlace(node) {
  if (node.graph !== app.canvas?.graph) return;
  const { button } = rewritten.get(node);
  const shown = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"] [data-omnigen2-edit-prompt]`);
  if (shown && shown !== button) shown.replaceWith(button);
}

app.registerExtension({
  name: "OmniGen2.EditPrompt",
  nodeCreated(node) {
    if (node.comfyClass === NODE) addButton(node);
  },
  loadedGraphNode(node) {
    if (rewritten.has(node)) takePlace(node);
  },
  setup() {
    whenExecuted((path, output) => {
      const own = rewritten.get(findNode(path));
      const [text] = output.text ?? [];
      if (own && text !== undefined) own.text = text;
    });
  },
});
