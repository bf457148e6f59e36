// The turns of a conversation of OmniGen2 Chat as elements of the page. What people and models wrote is only ever set as
// textContent, and names of files only as parameters of an address on this server.
import { api } from "../../../scripts/api.js";
import { CHAT, inLocale } from "./words.js";

const FORMAT = "omnigen2-conversation";

export const words = () => inLocale(CHAT);

export function make(tag, style, properties = {}) {
  const element = document.createElement(tag);
  element.style.cssText = style;
  return Object.assign(element, properties);
}

function speaker(name) {
  return make("div", "font-weight: bold; opacity: 0.75;", { textContent: name });
}

export function paragraph(text) {
  return make("div", "white-space: pre-wrap; overflow-wrap: anywhere;", { textContent: text });
}

// The turns of a conversation's JSON with everything that is missing or of another type left out. Throws for JSON that
// is none.
export function turnsOf(json) {
  if (!json.trim()) return [];
  const value = JSON.parse(json);
  if (value?.format !== FORMAT || !Array.isArray(value.turns)) throw new Error(FORMAT);
  return value.turns.map((turn) => ({
    user: turn?.role === "user",
    text: typeof turn?.text === "string" ? turn.text : "",
    images: (Array.isArray(turn?.images) ? turn.images : []).filter((name) => typeof name === "string"),
    dropped: Number.isInteger(turn?.images_dropped) ? turn.images_dropped : 0,
  }));
}

function pictureElement(name) {
  const parts = name.split("/");
  const query = new URLSearchParams({ filename: parts.pop(), subfolder: parts.join("/"), type: "output" });
  const link = make("a", "display: inline-block; margin: 4px 4px 0 0;", {
    href: api.apiURL(`/view?${query}`),
    target: "_blank",
    rel: "noopener",
  });
  const picture = make("img", "display: block; max-width: 100%; max-height: 220px; border-radius: 4px;", {
    alt: `${words().picture} ${name}`,
  });
  picture.onerror = () => link.replaceWith(goneElement(name));
  picture.src = link.href;
  link.append(picture);
  return link;
}

function goneElement(name) {
  const gone = paragraph(`${words().gone} ${name}`);
  gone.dataset.omnigen2Gone = name;
  return gone;
}

// A request may have failed for want of a connection. What says that the picture is gone stays until it is there, so that
// a screen reader does not read it out anew.
export function askAgain(gone) {
  const link = pictureElement(gone.dataset.omnigen2Gone);
  link.firstChild.onload = () => gone.replaceWith(link);
}

export function bubble(user, ...content) {
  const colour = user ? "rgba(90, 140, 220, 0.18)" : "rgba(160, 160, 160, 0.16)";
  const box = make("div", `padding: 6px 8px; border-radius: 6px; background: ${colour};`);
  box.append(speaker(user ? words().user : words().assistant), ...content);
  return box;
}

export function turnElement(turn) {
  const content = turn.text ? [paragraph(turn.text)] : [];
  content.push(...turn.images.map(pictureElement));
  if (turn.dropped) content.push(paragraph(`${words().dropped} ${turn.dropped}`));
  return bubble(turn.user, ...content);
}
