// Shows the rounds of OmniGen2 Reflection Loop and the pictures of OmniGen2 Best of N side by side as they come. A click
// shows what was said of one; in the loop a round can be picked, and the next run goes on from it.
//
// The rounds are kept in the node's properties, so that they are saved, copied and pasted with it; the pick is in its
// widgets. All texts may come from a model or a stranger's file: they are only ever set as textContent.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { keepThroughUndo } from "./kept.js";
import { keepKey } from "./keys.js";
import { allNodes, findNode } from "./notes.js";
import { deliver, isUnderWay, whenEnded, whenExecuted } from "./runs.js";
import { CUT_OFF, ROUNDS, inLocale } from "./words.js";

// What the nodes call their entries. A round has the number that pick and the transcript know it by.
const KINDS = {
  OmniGen2ReflectionLoop: { name: "round", all: "rounds", details: "details", empty: "empty", first: 0 },
  OmniGen2BestOfN: { name: "picture", all: "pictures", details: "pictureDetails", empty: "noPictures", first: 1 },
};
const WIDGET = "omnigen2_rounds";
const PROPERTY = "omnigen2_rounds";
const EVENT = "omnigen2.rounds";
const NO_PICK = -1;
const EMPTY_HEIGHT = 44;
const FULL_HEIGHT = 330;

const STYLE = `
.omnigen2-rounds { display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; overflow: hidden;
  font: 12px/17px sans-serif; color: var(--input-text, #ddd); }
.omnigen2-rounds [role="list"] { display: flex; gap: 6px; overflow-x: auto; flex: none; padding: 3px; }
.omnigen2-rounds [role="list"] button { display: flex; flex-direction: column; width: 116px; padding: 3px; cursor: pointer;
  font: inherit; text-align: left; color: inherit; background: var(--comfy-input-bg, #222);
  border: 2px solid transparent; border-radius: 5px; }
.omnigen2-rounds [role="list"] button[aria-pressed="true"] { border-color: #5a93c9; }
.omnigen2-rounds button:focus-visible { outline: 2px solid #ffd479; outline-offset: 1px; }
.omnigen2-rounds img { width: 106px; height: 90px; object-fit: contain; background: rgba(0, 0, 0, 0.25); overflow: hidden; }
.omnigen2-rounds [role="region"] { flex: 1 1 0; min-height: 60px; overflow-y: auto; padding: 2px 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; background: rgba(127, 127, 127, 0.12); border-radius: 4px; user-select: text; }
.omnigen2-rounds .pick { flex: none; font: inherit; padding: 3px 6px; cursor: pointer; color: inherit;
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #555); border-radius: 4px; }
.omnigen2-rounds .pick[aria-pressed="true"] { border-color: #d9a441; }
.omnigen2-rounds [hidden] { display: none; }
`;

const boards = new WeakMap();

// What Python calls something, in the user's language; a file may hold anything else.
function word(key) {
  const words = inLocale(ROUNDS);
  return Object.hasOwn(words, key) ? words[key] : plain(key);
}

function plain(value) {
  return typeof value === "string" ? value : "";
}

function list(value) {
  return Array.isArray(value) ? value : [];
}

function percent(chance) {
  return typeof chance === "number" ? `${Math.round(100 * chance)} %` : word("noAnswer");
}

// Rounds as Python reports them, or null for anything else that a file may hold.
function readRounds(value) {
  const right = value?.format === "omnigen2.reflection" && Array.isArray(value.rounds) && Array.isArray(value.pictures);
  return right && value.rounds.every((entry) => entry && typeof entry === "object") ? value : null;
}

function address(name) {
  const folders = plain(name).split("/");
  const filename = folders.pop();
  const query = new URLSearchParams({ filename, subfolder: folders.join("/"), type: "output" });
  return api.apiURL(`/view?${query}`);
}

function element(tag, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

class Board {
  constructor(node) {
    this.node = node;
    this.kind = KINDS[node.comfyClass];
    this.rounds = null;
    this.selected = null;
    this.progress = "";
    this.items = [];
    this.strip = element("div", { role: "list", "aria-label": word(this.kind.all) });
    this.status = element("div", { role: "status", "aria-live": "polite" }, word(this.kind.empty));
    // Nodes 2.0 leaves the wheel to elements that say so.
    const scrolls = { "data-capture-wheel": "true" };
    this.details = element("div", { role: "region", "aria-label": word(this.kind.details), tabindex: "0", ...scrolls });
    this.pickButton = element("button", { type: "button", class: "pick" });
    this.pickButton.addEventListener("click", () => this.togglePick());
    this.element = element("div", { role: "group", "aria-label": word(this.kind.all), class: "omnigen2-rounds" });
    this.element.append(this.strip, this.status, this.details, this.pickButton);
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.pick = node.widgets?.find((widget) => widget.name === "pick");
    this.earlier = node.widgets?.find((widget) => widget.name === "earlier_rounds");
    this.followPick();
    this.widget = node.addDOMWidget(WIDGET, WIDGET, this.element, {
      serialize: false,
      getValue: () => "",
      setValue: () => {},
      getMinHeight: () => (this.rounds?.rounds.length ? FULL_HEIGHT : EMPTY_HEIGHT),
    });
    // options.serialize keeps it out of the prompt, this keeps it out of the saved widget values.
    this.widget.serialize = false;
    this.render();
  }

  nameOf(index) {
    return word(this.kind.name).replace("#", index + this.kind.first);
  }

  // Rounds come in from a run; stage and index say what is under way.
  receive(value, stage = "", index = -1) {
    const rounds = readRounds(value);
    if (!rounds) return;
    if (stage) this.progress = `${this.nameOf(index)}: ${word(stage)} …`;
    else if (rounds.stop !== null) this.progress = "";
    // Only finished rounds are worth keeping: a run that has none yet does not wipe out those of the last one.
    if (rounds.rounds.length && JSON.stringify(rounds) !== JSON.stringify(this.rounds)) {
      const same = this.selected !== null && rounds.pictures[this.selected] === this.rounds?.pictures[this.selected];
      this.keep(rounds, same ? this.selected : null);
    }
    this.renderStatus();
  }

  keep(rounds, selected) {
    this.node.properties[PROPERTY] = rounds;
    this.load(selected);
    keepThroughUndo(this.node, PROPERTY, rounds, this.node.computeSize());
  }

  // A run has ended. One that ended with the server has not said so in its rounds.
  end() {
    if (!this.progress) return;
    this.progress = "";
    if (this.rounds?.stop === null) this.keep({ ...this.rounds, stop: CUT_OFF }, this.selected);
    this.renderStatus();
  }

  // A request may have failed for want of a connection.
  askForPictures() {
    for (const image of this.strip.querySelectorAll("img")) {
      if (image.complete && !image.naturalWidth) image.src = image.getAttribute("src");
    }
  }

  // Shows what is in the node's properties.
  load(selected = null) {
    this.rounds = readRounds(this.node.properties?.[PROPERTY]);
    this.selected = selected;
    this.render();
    this.makeRoom();
  }

  makeRoom() {
    if (!this.rounds?.rounds.length) return;
    const [width, height] = this.node.computeSize();
    const [nowWide, nowHigh] = this.node.size;
    if (nowWide < width || nowHigh < height) this.node.setSize?.([Math.max(nowWide, width), Math.max(nowHigh, height)]);
    this.node.setDirtyCanvas?.(true, true);
  }

  render() {
    const entries = this.rounds?.rounds ?? [];
    const shown = this.selected ?? this.rounds?.best ?? 0;
    while (this.items.length > entries.length) this.items.pop().remove();
    entries.forEach((entry, index) => this.renderItem(entry, index, index === shown));
    this.renderStatus();
    this.details.hidden = !entries.length;
    this.details.replaceChildren(...(entries[shown] ? this.detailsOf(entries[shown], shown) : []));
    this.renderPick(shown);
  }

  renderStatus() {
    const ended = word(this.rounds ? this.rounds.stop : this.kind.empty);
    const elsewhere = this.pick?.value >= 0 && this.countsElsewhere() && word("elsewhere");
    this.status.textContent = this.progress || [ended, elsewhere].filter(Boolean).join(" ");
  }

  renderItem(entry, index, shown) {
    if (!this.items[index]) {
      const item = element("div", { role: "listitem" });
      const button = element("button", { type: "button" });
      button.append(element("img"), element("span"), element("span"));
      button.addEventListener("click", () => {
        this.selected = index;
        this.render();
      });
      item.append(button);
      this.strip.append(item);
      this.items[index] = item;
    }
    const button = this.items[index].firstChild;
    const [image, title, verdict] = button.children;
    // Where nothing could be scored, the first picture is returned and none was found the best.
    const best = index === this.rounds.best && typeof entry.score?.value === "number";
    const marks = [best && word("best"), index === this.pickedIndex() && word("picked")];
    const name = [this.nameOf(index), ...marks.filter(Boolean)].join(" · ");
    const made = word(entry.origin);
    const said = [word(entry.reflection?.verdict), this.scoreOf(entry)].filter(Boolean).join(", ");
    title.textContent = name;
    verdict.textContent = said;
    image.alt = `${this.nameOf(index)}: ${made}`;
    image.loading = "lazy";
    const source = address(this.rounds.pictures[index]);
    if (image.getAttribute("src") !== source) image.src = source;
    button.setAttribute("aria-pressed", String(shown));
    button.setAttribute("aria-label", [name, made, said].filter(Boolean).join(", "));
  }

  scoreOf(entry) {
    const value = entry.score?.value;
    return typeof value === "number" ? value.toFixed(2) : word("noScore");
  }

  detailsOf(entry, index) {
    const said = entry.reflection;
    const seed = entry.seed === null || entry.seed === undefined ? "" : `, ${word("seed")} ${entry.seed}`;
    const lines = [[this.nameOf(index), `${word(entry.origin)}${seed}`]];
    if (said) {
      lines.push([word(said.verdict), plain(said.note)]);
      if (said.problem) lines.push([word("problem"), plain(said.problem)]);
      if (said.correction) lines.push([word("correction"), plain(said.correction)]);
      if (said.verdict === "no opinion") {
        for (const answer of list(said.answers)) lines.push([word("answer"), plain(answer) || word("nothing")]);
      }
    }
    lines.push([word("score"), [this.scoreOf(entry), plain(entry.score?.note)].filter(Boolean).join(" - ")]);
    for (const check of list(entry.score?.checks)) lines.push([percent(check?.probability), plain(check?.question)]);
    lines.push([word("prompt"), plain(entry.prompt)]);
    return lines.map(([label, text]) => {
      const line = element("div", { dir: "auto" });
      line.append(element("strong", {}, label), text ? `: ${text}` : "");
      return line;
    });
  }

  renderPick(shown) {
    this.pickButton.hidden = !this.pick || !this.rounds?.rounds.length;
    const picked = shown === this.pickedIndex();
    this.pickButton.setAttribute("aria-pressed", String(picked));
    this.pickButton.textContent = `${this.nameOf(shown)}: ${word(picked ? "unpick" : "pick")}`;
  }

  // Which of the rounds that are shown is picked. It may be an earlier run's, so the picture tells, and not the number.
  pickedIndex() {
    if (!this.pick || this.pick.value < 0 || !this.rounds) return NO_PICK;
    const name = this.earlierPictures()[this.pick.value];
    return typeof name === "string" ? this.rounds.pictures.indexOf(name) : NO_PICK;
  }

  earlierPictures() {
    try {
      return list(JSON.parse(this.earlier.value)?.pictures);
    } catch {
      return [];
    }
  }

  // Whether pick counts in rounds of which none is shown: those of another node, such as OmniGen2 Best of N, that a hand has
  // put there, or this node's own from before a run that drew others.
  countsElsewhere() {
    const names = this.earlierPictures();
    return names.length > 0 && !names.some((name) => this.rounds?.pictures.includes(name));
  }

  togglePick() {
    const shown = this.selected ?? this.rounds?.best ?? 0;
    if (this.countsElsewhere()) this.earlier.value = "";
    this.pick.value = shown === this.pickedIndex() ? NO_PICK : shown;
    this.pick.callback?.(this.pick.value);
    this.selected = shown;
    this.render();
    this.node.setDirtyCanvas?.(true, true);
    const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
    (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
  }

  // A pick, by the button or as a number, takes along the rounds that it counts in. Where others are there already, a number
  // counts in these.
  followPick() {
    if (!this.pick) return;
    const original = this.pick.callback;
    this.pick.callback = (...values) => {
      original?.apply(this.pick, values);
      if (!this.countsElsewhere()) this.takeAlong();
      this.render();
    };
  }

  takeAlong() {
    if (this.pick.value < 0) this.earlier.value = "";
    else if (this.rounds) this.earlier.value = JSON.stringify(this.rounds);
  }

  onKey(event) {
    keepKey(event);
    const buttons = this.items.map((item) => item.firstChild);
    const at = buttons.indexOf(event.target);
    if (at < 0) return;
    const last = buttons.length - 1;
    const to = { ArrowLeft: Math.max(at - 1, 0), ArrowRight: Math.min(at + 1, last), Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    buttons[to].focus();
  }
}

// Nodes 2.0 goes on showing the element of a node that undo has made anew; that of the new node takes its place.
function takePlace(node, board) {
  if (node.graph !== app.canvas?.graph) return;
  const shown = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"] .omnigen2-rounds`);
  if (shown && shown !== board.element) shown.replaceWith(board.element);
}

app.registerExtension({
  name: "OmniGen2.Reflection",
  init() {
    document.head.append(element("style", {}, STYLE));
  },
  nodeCreated(node) {
    if (!Object.hasOwn(KINDS, node.comfyClass)) return;
    const board = new Board(node);
    boards.set(node, board);
    const onConfigure = node.onConfigure;
    node.onConfigure = function () {
      const result = onConfigure?.apply(this, arguments);
      board.load();
      return result;
    };
  },
  loadedGraphNode(node) {
    if (boards.has(node)) takePlace(node, boards.get(node));
  },
  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      deliver(detail.prompt_id, `rounds ${detail.prompt_id} ${detail.node}`, (late) => {
        const board = boards.get(findNode(detail.node));
        board?.receive(detail.rounds, detail.stage, detail.round);
        // It may have ended while another workflow was on the canvas, and without a word where the server has too.
        if (late && !isUnderWay(detail.prompt_id)) board?.end();
      });
    });
    api.addEventListener("reconnected", () => {
      for (const node of allNodes()) boards.get(node)?.askForPictures();
    });
    whenExecuted((path, output) => {
      // One entry for each item where a list is connected. Their rounds were shown as they came, the last ones last.
      const rounds = output[PROPERTY]?.at(-1);
      if (rounds) boards.get(findNode(path))?.receive(rounds);
    });
    whenEnded(() => {
      for (const node of allNodes()) boards.get(node)?.end();
    });
  },
});
