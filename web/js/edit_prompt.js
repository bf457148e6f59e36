// A button on OmniGen2 Enhance Prompt that puts the last rewritten prompt into the field `edited`, where the user
// changes it. It is only ever set as the value of a text field.
import { app } from "../../../scripts/app.js";

const LABELS = {
  en: "Edit the rewritten prompt",
  ko: "다시 쓴 프롬프트 편집",
  zh: "编辑改写后的提示词",
};

app.registerExtension({
  name: "OmniGen2.EditPrompt",
  nodeCreated(node) {
    if (node.comfyClass !== "OmniGen2EnhancePrompt") return;
    const edited = node.widgets.find((widget) => widget.name === "edited");
    let written = "";
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      written = output?.text?.[0] ?? written;
    };
    const locale = app.extensionManager.setting.get("Comfy.Locale");
    const button = node.addWidget("button", LABELS[locale] ?? LABELS.en, null, () => {
      if (!written) return;
      edited.value = written;
      edited.callback?.(written);
      node.setDirtyCanvas(true, true);
    });
    button.serialize = false;
  },
});
