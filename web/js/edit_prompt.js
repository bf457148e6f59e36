// A button on OmniGen2 Enhance Prompt that puts the last rewritten prompt into the field `edited`, where the user
// changes it. It is only ever set as the value of a text field. The prompt is kept with the node, since another run would
// write another.
import { app } from "../../../scripts/app.js";
import { keepThroughUndo } from "./kept.js";
import { keepKey } from "./keys.js";
import { findNode } from "./notes.js";
import { whenExecuted } from "./runs.js";
import { EDIT_PROMPT, inLocale } from "./words.js";

const NODE = "OmniGen2EnhancePrompt";
const WIDGET = "omnigen2_edit_prompt";
const PROPERTY = "omnigen2_rewritten";
const HEIGHT = 32;

const STYLE =
  "width: 100%; height: 100%; font: 13px sans-serif; border: 1px solid var(--border-color, #555); border-radius: 4px; " +
  "background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); cursor: pointer;";

const buttons = new WeakMap();

// The last rewritten prompt, of a run or of the file that the node comes from.
function rewritten(node) {
  const text = node.properties?.[PROPERTY];
  return typeof text === "string" ? text : "";
}

// Not the property `disabled`, which would take the button from the keyboard, and with it its name from a screen reader.
function follow(node) {
  const [button, nothing] = [buttons.get(node), !rewritten(node)];
  button.setAttribute("aria-disabled", nothing);
  button.style.opacity = nothing ? 0.5 : 1;
}

// An element of the page and not a button of the canvas, which no keyboard reaches and no screen reader names.
function addButton(node) {
  const edited = node.widgets.find((widget) => widget.name === "edited");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = inLocale(EDIT_PROMPT);
  button.style.cssText = STYLE;
  button.dataset.omnigen2EditPrompt = "";
  button.addEventListener("click", () => {
    const text = rewritten(node);
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
  buttons.set(node, button);
  follow(node);
  const { onConfigure } = node;
  node.onConfigure = function (...values) {
    const result = onConfigure?.apply(this, values);
    follow(node);
    return result;
  };
}

// Nodes 2.0 goes on showing the element of a node that undo has made anew; that of the new node takes its place.
function takePlace(node) {
  if (node.graph !== app.canvas?.graph) return;
  const button = buttons.get(node);
  const shown = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"] [data-omnigen2-edit-prompt]`);
  if (shown && shown !== button) shown.replaceWith(button);
}

app.registerExtension({
  name: "OmniGen2.EditPrompt",
  nodeCreated(node) {
    if (node.comfyClass === NODE) addButton(node);
  },
  loadedGraphNode(node) {
    if (buttons.has(node)) takePlace(node);
  },
  setup() {
    whenExecuted((path, output) => {
      const node = findNode(path);
      const [text] = output[PROPERTY] ?? [];
      // A result that was kept comes again with every run, and what changes the workflow may queue the next.
      if (!buttons.has(node) || text === undefined || text === rewritten(node)) return;
      node.properties[PROPERTY] = text;
      keepThroughUndo(node, PROPERTY, text);
      follow(node);
    });
  },
});
