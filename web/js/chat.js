// The conversation of OmniGen2 Chat, as two widgets of the node: `history`, which shows its JSON as turns with
// pictures, and `message`, the field for the next one. The node's state is these two values and nothing else, so
// saving, loading, copying and undoing it are the frontend's own.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { keepKey } from "./keys.js";
import { allNodes, findNode } from "./notes.js";
import { follow, forget, forgetAll, isOfRun, pendingHere, pendingOf, wait } from "./pending.js";
import { partFor, pathsBehind } from "./prompts.js";
import { active, isForCanvas, isOnCanvas, whenEnded, whenExecuted, whenOpened, whenQueued } from "./runs.js";
import { askAgain, bubble, make, paragraph, turnElement, turnsOf, words } from "./turns.js";

const NODE = "OmniGen2Chat";
const LOG_HEIGHT = 260;
const FIELD_HEIGHT = 96;

const chats = new WeakMap();

// The nodes whose messages are being sent, by the list of the outputs that are to run for them.
const senders = new WeakMap();

// Answers that came while their workflow was not on the canvas; they are given to it when it is there again.
const waiting = [];
const MOST_WAITING = 20;

class Chat {
  constructor(node) {
    this.node = node;
    this.json = "";
    this.shown = [];
    this.passing = [];
    // Whether a message is being sent, and what the user was told meanwhile.
    this.sending = false;
    this.told = "";
    this.makeLog();
    this.makeField();
    this.show();
  }

  // A box of its widget's size around what scrolls, so that a long conversation makes no tall node. The reversed
  // direction keeps the end in view as it grows, unless the user has scrolled away from it.
  makeLog() {
    this.turns = make("div", "display: flex; flex-direction: column; gap: 6px; padding: 6px;");
    this.turns.setAttribute("role", "log");
    this.turns.setAttribute("aria-label", words().log);
    this.status = make("div", "padding: 0 8px 4px; opacity: 0.8;");
    this.status.setAttribute("role", "status");
    const scrolling = make(
      "div",
      "position: absolute; inset: 0; overflow-y: auto; display: flex; flex-direction: column-reverse; " +
        "background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); border-radius: 4px; " +
        "font: 13px/18px sans-serif;",
      { tabIndex: 0 },
    );
    scrolling.setAttribute("role", "region");
    scrolling.setAttribute("aria-label", words().log);
    // Nodes 2.0 leaves the wheel to elements that say so.
    scrolling.dataset.captureWheel = "true";
    const content = make("div", "");
    content.append(this.turns, this.status);
    // Above a short conversation, so that it begins at the top.
    scrolling.append(make("div", "flex: 1 1 auto;"), content);
    this.log = make("div", `position: relative; width: 100%; height: 100%; min-height: ${LOG_HEIGHT - 20}px;`);
    this.log.dataset.omnigen2Chat = "log";
    this.log.append(scrolling);
    this.log.addEventListener("keydown", keepKey);
  }

  makeField() {
    this.field = make(
      "textarea",
      "flex: 1 1 auto; min-width: 0; resize: none; border: none; border-radius: 4px; padding: 6px; " +
        "background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); font: 13px/18px sans-serif;",
      { placeholder: words().hint },
    );
    this.field.setAttribute("aria-label", words().message);
    this.field.dataset.captureWheel = "true";
    this.field.addEventListener("keydown", (event) => {
      // While a Korean or Chinese word is being composed, Enter ends the word.
      // Safari ends the composing first, and names the key 229.
      const composing = event.isComposing || event.keyCode === 229;
      if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || composing) return;
      event.preventDefault();
      event.stopPropagation();
      this.send();
    });
    const style =
      "flex: 1 1 auto; border: none; border-radius: 4px; padding: 4px 8px; cursor: pointer; " +
      "background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); font: 12px/16px sans-serif;";
    const send = make("button", style, { type: "button", textContent: words().send });
    send.addEventListener("click", () => this.send());
    const anew = make("button", style, { type: "button", textContent: words().anew });
    anew.addEventListener("click", () => this.begin());
    const buttons = make("div", "display: flex; flex-direction: column; gap: 4px; flex: 0 0 108px;");
    buttons.append(send, anew);
    const size = `width: 100%; height: 100%; min-height: ${FIELD_HEIGHT - 20}px;`;
    this.composer = make("div", `display: flex; gap: 4px; ${size}`);
    this.composer.dataset.omnigen2Chat = "composer";
    this.composer.append(this.field, buttons);
    this.composer.addEventListener("keydown", keepKey);
  }

  // What this node was asked and has no answer to yet.
  get asked() {
    return pendingOf(this.node);
  }

  get history() {
    return this.json;
  }

  set history(value) {
    this.json = String(value ?? "");
    this.show();
  }

  get message() {
    return this.field.value;
  }

  set message(value) {
    this.field.value = String(value ?? "");
  }

  // The conversation with nothing of a turn that is being made. Turns that are there already stay, so that a screen
  // reader reads out only what is new and no picture is fetched twice.
  show() {
    let turns = [];
    const passing = [];
    try {
      turns = turnsOf(this.json);
      if (!turns.length) passing.push(paragraph(words().empty));
    } catch (error) {
      passing.push(paragraph(`${words().unreadable} ${error.message}`));
    }
    const before = this.shown;
    this.shown = turns.map((turn) => {
      const key = JSON.stringify(turn);
      const at = before.findIndex((entry) => entry.key === key);
      return at < 0 ? { key, element: turnElement(turn) } : before.splice(at, 1)[0];
    });
    for (const { element } of before) element.remove();
    this.pass(...passing);
    this.shown.forEach(({ element }, index) => {
      if (this.turns.children[index] !== element) this.turns.insertBefore(element, this.turns.children[index] ?? null);
    });
    this.turns.removeAttribute("aria-busy");
    this.coming = null;
    this.told = "";
    this.say("");
  }

  // Elements below the turns, in the place of those that were there.
  pass(...elements) {
    for (const element of this.passing) element.remove();
    this.passing = elements;
    this.turns.append(...elements);
  }

  say(text) {
    this.status.textContent = text;
  }

  async send() {
    if (!this.message.trim()) return;
    if (this.asked.length || this.sending) {
      this.told = words().wait;
      this.say(this.told);
      return;
    }
    this.sending = true;
    try {
      await this.queue();
    } catch (error) {
      this.say(String(error?.message ?? error));
    } finally {
      this.sending = false;
      if (this.told && !this.asked.length) {
        this.told = "";
        this.say("");
      }
    }
  }

  // Runs this node and what hangs on it: a message is no reason to run all else on the canvas. Seeds that are to change from
  // run to run do so where they had a part in this one, which the frontend leaves out when only some outputs run.
  async queue() {
    const own = active();
    const { output } = await app.graphToPrompt();
    if (own !== active()) return;
    const targets = targetsOf(output, this.node);
    if (!targets.length) {
      this.say(words().off);
      return;
    }
    senders.set(targets, this.node);
    const widgets = Object.keys(partFor(output, targets)).flatMap((path) => findNode(path)?.widgets ?? []);
    for (const widget of widgets) widget.beforeQueued?.({});
    if ((await app.queuePrompt(0, 1, targets)) === false) return;
    for (const widget of widgets) widget.afterQueued?.({});
  }

  begin() {
    remember();
    this.history = "";
    remember();
    this.field.focus();
  }

  // A turn that is being made: {message, text, drawing}.
  live({ message, text, drawing }) {
    if (!this.coming) {
      this.show();
      // Not read out piece by piece; the whole answer is, when it is there.
      this.turns.setAttribute("aria-busy", "true");
      this.coming = paragraph("");
      this.pass(bubble(true, paragraph(message)), bubble(false, this.coming));
    }
    this.coming.textContent = text;
    this.say(this.told || (drawing ? words().drawing : words().writing));
  }

  askForPictures() {
    this.turns.querySelectorAll("[data-omnigen2-gone]").forEach(askAgain);
  }

  // Ends a turn whose run succeeded without this node: an input held it back.
  skip() {
    this.show();
    this.say(words().skipped);
  }

  // Ends a turn that got no answer. lost: whether it will never get one, as when its run was taken out of the queue.
  stop(lost) {
    if (this.coming || lost) {
      this.show();
      this.say(words().stopped);
    } else if (this.told && !this.asked.length) {
      this.told = "";
      this.say("");
    }
  }

  // Whether `answer` is to what this node asks, or asked, about the conversation that it shows. `known`: whether it is
  // known to be for this node.
  fits(answer, known = false) {
    if (answer.before !== this.json) return false;
    const linked = this.node.inputs?.some((input) => input.widget?.name === "message" && input.link != null);
    return known || linked || [this, ...this.asked].some(({ message }) => message === answer.message);
  }

  // Whether this node waited for `run` to answer; it does not any more.
  answered(run) {
    const turn = this.asked.find((asked) => isOfRun(asked, run));
    return Boolean(turn && forget(turn));
  }

  add(answer, run) {
    // What the user had typed is a state to come back to.
    remember();
    if (this.message === answer.message) this.message = "";
    this.answered(run);
    this.history = answer.conversation;
    remember();
    app.canvas?.setDirty(true, true);
  }
}

// Whether an entry of a prompt is a chat with a field to write in.
function isDraft({ class_type, inputs }) {
  return class_type === NODE && !Array.isArray(inputs?.message);
}

// Whether an entry of a prompt is a chat that is asked something. What a link brings is only known to the run.
function isAsked({ class_type, inputs }) {
  return class_type === NODE && (Array.isArray(inputs?.message) || Boolean(inputs?.message?.trim?.()));
}

// What is being written in the other chats that a message needs is not sent with it.
function leaveOutDrafts(prompt, sender) {
  for (const [path, entry] of Object.entries(prompt)) {
    if (isDraft(entry) && findNode(path) !== sender) entry.inputs.message = "";
  }
}

// The outputs that a message is for, by their paths: the node, and what hangs on it. Another chat whose message is still being
// written is not one of them. None for a node that does not run.
function targetsOf(prompt, node) {
  const path = Object.keys(prompt).find((other) => findNode(other) === node);
  if (path === undefined) return [];
  const isOutput = (other) => LiteGraph.registered_node_types[prompt[other].class_type]?.nodeData?.output_node;
  return pathsBehind(prompt, path, isDraft).filter(isOutput);
}

// A message's run is over. An answer for a workflow that is not on the canvas is still on its way.
function conclude(turn, succeeded) {
  if (!succeeded) forget(turn);
  else if (isOnCanvas(turn.request.owner) && forget(turn)) chatAt(turn.path)?.skip();
}

// Has the frontend's undo take note of how the workflow is now.
function remember() {
  active()?.changeTracker?.captureCanvasState?.();
}

function chatOf(node) {
  if (!chats.has(node)) chats.set(node, new Chat(node));
  return chats.get(node);
}

function chatAt(path) {
  const node = findNode(path);
  return node?.comfyClass === NODE ? chatOf(node) : null;
}

function receive(path, answer, { run, known }) {
  const chat = chatAt(path);
  if (chat?.fits(answer, known)) {
    chat.add(answer, run);
  } else if (chat?.answered(run)) {
    chat.show();
    chat.say(words().changed);
  } else {
    waiting.push({ path, answer, run });
    waiting.splice(0, waiting.length - MOST_WAITING);
  }
}

function collect(node) {
  const index = waiting.findIndex(({ path, answer }) => findNode(path) === node && chatOf(node).fits(answer));
  if (index < 0) return;
  const [{ answer, run }] = waiting.splice(index, 1);
  chatOf(node).add(answer, run);
}

// Nodes 2.0 goes on showing the elements of a node that undo has made anew; those of the new node take their place.
function takePlace(node) {
  if (node.graph !== app.canvas?.graph) return;
  const shown = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"]`);
  const { log, composer } = chatOf(node);
  for (const element of [log, composer]) {
    const old = shown?.querySelector(`[data-omnigen2-chat="${element.dataset.omnigen2Chat}"]`);
    if (old && old !== element) old.replaceWith(element);
  }
}

function historyWidget(node, name) {
  const chat = chatOf(node);
  const widget = node.addDOMWidget(name, "OMNIGEN2_CHAT_HISTORY", chat.log, {
    getValue: () => chat.history,
    setValue: (value) => (chat.history = value),
    getMinHeight: () => LOG_HEIGHT,
    socketless: true,
  });
  return { widget, minWidth: 420, minHeight: LOG_HEIGHT };
}

function messageWidget(node, name) {
  const chat = chatOf(node);
  const widget = node.addDOMWidget(name, "OMNIGEN2_CHAT_MESSAGE", chat.composer, {
    getValue: () => chat.message,
    setValue: (value) => (chat.message = value),
    getMinHeight: () => FIELD_HEIGHT,
    getMaxHeight: () => FIELD_HEIGHT,
  });
  return { widget, minWidth: 420, minHeight: FIELD_HEIGHT };
}

app.registerExtension({
  name: "OmniGen2.Chat",
  getCustomWidgets: () => ({
    OMNIGEN2_CHAT_HISTORY: historyWidget,
    OMNIGEN2_CHAT_MESSAGE: messageWidget,
  }),
  loadedGraphNode(node) {
    if (node.comfyClass !== NODE) return;
    takePlace(node);
    collect(node);
  },
  setup() {
    api.addEventListener("omnigen2.chat", ({ detail }) => {
      follow(detail);
      if (isForCanvas(detail.prompt_id)) chatAt(detail.node)?.live(detail);
    });
    api.addEventListener("reconnected", () => {
      for (const node of allNodes()) chats.get(node)?.askForPictures();
    });
    // What was sent, and not what is in the field by now: the user may already be typing the next message.
    whenQueued((prompt, request) => {
      if (senders.has(request.targets)) leaveOutDrafts(prompt, senders.get(request.targets));
      const turns = Object.entries(prompt)
        .filter(([, entry]) => isAsked(entry))
        .map(([path, { inputs }]) => ({ request, path, message: inputs.message, detail: null }));
      wait(turns);
      return (succeeded) => turns.forEach((turn) => conclude(turn, succeeded));
    });
    whenExecuted((path, output, source) => {
      const [answer] = output.omnigen2_chat ?? [];
      if (answer) receive(path, answer, source);
      // It has run, and the link brought nothing to answer.
      else if (output.omnigen2_notes) chatAt(path)?.answered(source.run);
    });
    whenOpened(() => {
      for (const { path, detail } of pendingHere()) if (detail) chatAt(path)?.live(detail);
    });
    whenEnded((idle) => {
      const lost = idle ? pendingHere().map(({ path }) => chatAt(path)) : [];
      if (idle) forgetAll();
      for (const node of allNodes()) chats.get(node)?.stop(lost.includes(chats.get(node)));
    });
  },
});
