// What runs report, for the other files here. While the page is not connected, or is loaded anew, the server's messages go
// nowhere: what it missed is had from the server's history afterwards. A server that was restarted has none, and its run has
// ended. Nodes are known by their numbers, which every workflow has anew: what a run reports is for the workflow that it was
// queued from, and waits until that one is on the canvas.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { partFor } from "./prompts.js";

const SUCCESS = "execution_success";
const ENDS = [SUCCESS, "execution_error", "execution_interrupted"];

const onQueued = [];
const onExecuted = [];
const onEnded = [];
const onOpened = [];

// The runs that have begun, by id: {reported, gap}, the nodes that have reported and whether messages may be missing.
const runs = new Map();

// The workflow that each run was queued from, by the run's id, weakly: one that was closed is not kept. A program's runs have
// none here.
const owners = new Map();
const MOST_OWNERS = 2000;

// What is to be done when another workflow is on the canvas: {owner, key, react}.
let held = [];
const MOST_HELD = 200;

// How many prompts have been sent, and how many of them the server has not answered to.
let sent = 0;
let sending = 0;

// What is to be told of the end of each prompt that the server has taken, by its run's id. One that was taken out of the
// queue has no end, but the queue has. And whether the runs succeeded that ended before the server's answer.
const awaited = new Map();
const endedEarly = new Map();

// Where the page keeps what it awaits when it is left, in case it is loaded anew: [run, path of its workflow].
const KEPT = "omnigen2.runs";

// Whether a workflow has been opened since the page was loaded.
let opened = false;

// How many workflows are being opened: meanwhile the new one's nodes are there, and the one before is still the active one.
let opening = 0;

export const active = () => app.extensionManager.workflow?.activeWorkflow ?? null;

const ownerOf = (run) => owners.get(run)?.deref();

// Whether a workflow, such as a request's owner, is the one on the canvas.
export function isOnCanvas(owner) {
  return !opening && owner === active();
}

// Whether what a run reports is for the workflow on the canvas. A run of which that is not known is taken for one of it, but
// not while the first one is being opened: before that, it is not known of those that the page awaited when it was left.
export function isForCanvas(run) {
  return owners.has(run) ? isOnCanvas(ownerOf(run)) : opened || !opening;
}

// Whether a run has begun and its end has not been told of.
export function isUnderWay(run) {
  return runs.has(run);
}

// Calls react(late) now or when the run's workflow is on the canvas again; of what waits under one key only the last.
export function deliver(run, key, react) {
  if (isForCanvas(run)) {
    react(false);
    return;
  }
  held = held.filter((other) => other.key !== key);
  held.push({ owner: ownerOf(run), key, react });
  held.splice(0, held.length - MOST_HELD);
}

function deliverHeld() {
  const { openWorkflows } = app.extensionManager.workflow;
  const due = held.filter(({ owner }) => isOnCanvas(owner));
  held = held.filter(({ owner }) => !isOnCanvas(owner) && openWorkflows.includes(owner));
  for (const { react } of due) react(true);
}

function followOpening() {
  const { loadGraphData } = app;
  app.loadGraphData = async function (...values) {
    opening += 1;
    try {
      return await loadGraphData.apply(this, values);
    } finally {
      // Only once undo, which opens too, has taken note of the state that it has gone to.
      setTimeout(() => {
        opening -= 1;
        if (!opened) recall();
        deliverHeld();
        for (const react of onOpened) react();
      });
    }
  };
}

// The server answers with the run's id, and nothing that it reports later names the workflow.
function followQueue() {
  const { queuePrompt } = api;
  api.queuePrompt = async function (...values) {
    const owner = opening ? null : active();
    const [, prompt, options] = values;
    const targets = options?.partialExecutionTargets;
    const sends = targets?.length ? partFor(prompt?.output ?? {}, targets) : (prompt?.output ?? {});
    const request = { owner, targets, run: null };
    const overs = onQueued.map((react) => react(sends, request));
    let answer;
    sent += 1;
    sending += 1;
    try {
      answer = await queuePrompt.apply(this, values);
    } catch (refused) {
      for (const over of overs) over(false);
      throw refused;
    } finally {
      sending -= 1;
    }
    request.run = answer?.prompt_id ?? null;
    if (request.run) take(request, overs);
    return answer;
  };
}

// The server has taken a prompt.
function take({ owner, run }, overs) {
  if (owner) owners.set(run, new WeakRef(owner));
  if (owners.size > MOST_OWNERS) owners.delete(owners.keys().next().value);
  awaited.set(run, overs);
  if (!endedEarly.has(run)) return;
  const succeeded = endedEarly.get(run);
  endedEarly.delete(run);
  settle(run, succeeded);
}

// react(prompt, request) is called with what will run of the API prompt that the page is about to send, which it may still
// change, and returns over(succeeded). That is called when the run has ended, or with false if the server does not take the
// prompt. request: {owner, targets, run}, the workflow, the outputs if not all are to run, and the run's id once it has one.
export function whenQueued(react) {
  onQueued.push(react);
}

// react(path, output, {run, known}) is called when a node has reported; inside a subgraph its path is "12:3", see findNode.
// known: whether the run is known to be of the workflow on the canvas.
export function whenExecuted(react) {
  onExecuted.push(react);
}

// react(idle) is called when a run has ended in whatever way, and with true when nothing is queued any more: a run that was
// taken out of the queue has no end.
export function whenEnded(react) {
  onEnded.push(react);
}

// react() is called when a workflow has been opened, or one of its earlier states, and what waited for it was delivered.
export function whenOpened(react) {
  onOpened.push(react);
}

function tell(run, path, output) {
  deliver(run, `executed ${run} ${path}`, () => {
    for (const react of onExecuted) react(path, output ?? {}, { run, known: owners.has(run) });
  });
}

function end(idle = false) {
  if (idle) for (const known of [awaited, endedEarly]) known.clear();
  for (const react of onEnded) react(idle);
}

// Tells those who took note of a run's prompt how it ended, or has that done once the run is known.
function settle(run, succeeded) {
  if (!awaited.has(run) && sending) endedEarly.set(run, succeeded);
  const overs = awaited.get(run) ?? [];
  awaited.delete(run);
  for (const over of overs) over(succeeded);
}

// Only as the page is left: until then a workflow may be given another name, or be closed.
function keepAwaited() {
  const { openWorkflows } = app.extensionManager.workflow;
  const pathOf = (run) => openWorkflows.find((workflow) => workflow === ownerOf(run))?.path;
  sessionStorage.setItem(KEPT, JSON.stringify([...awaited.keys()].map((run) => [run, pathOf(run)])));
}

function takeKept() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT)) ?? [];
    sessionStorage.removeItem(KEPT);
    return kept;
  } catch {
    return [];
  }
}

// Awaits again what the page awaited when it was left. All of its workflows are open again when the first is; what was told
// before found no node.
function recall() {
  opened = true;
  const { openWorkflows } = app.extensionManager.workflow;
  for (const [run, path] of takeKept()) {
    const owner = openWorkflows.find((workflow) => workflow.path === path);
    if (!owner) continue;
    runs.set(run, { reported: new Set(), gap: true });
    take({ owner, run }, []);
  }
  if (awaited.size) askTwice(makeUp);
  addEventListener("pagehide", keepAwaited);
}

// What was reported of the runs that are awaited may not have been heard, their beginning included.
function doubt() {
  for (const run of awaited.keys()) if (!runs.has(run)) runs.set(run, { reported: new Set(), gap: true });
  for (const run of runs.values()) run.gap = true;
}

async function get(path) {
  const answer = await api.fetchApi(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

// Says that nothing is queued any more, if that is so: a status may have been on its way for longer than a prompt.
async function endIfIdle() {
  const before = sent;
  if (sending || runs.size) return;
  const { queue_running, queue_pending } = await get("/queue");
  if (before === sent && !runs.size && !queue_running.length && !queue_pending.length) end(true);
}

// An idle server sends no other status from which it could be asked again.
function askTwice(ask) {
  ask().catch(() => setTimeout(() => ask().catch(() => {}), 1000));
}

// Tells what is missing of the runs that the server is done with. A status comes when one that is queued has left the queue.
async function makeUp() {
  const missed = [...runs].filter(([, { gap }]) => gap);
  const queue = await get("/queue");
  const isOurs = ([, , , extra]) => extra?.client_id === api.clientId;
  const queued = new Set([...queue.queue_running, ...queue.queue_pending].map(([, id]) => id));
  for (const [id, { reported }] of missed.filter(([id]) => !queued.has(id))) {
    const done = (await get(`/history/${id}`))[id];
    if (!runs.delete(id)) continue;
    for (const [node, output] of Object.entries(done?.outputs ?? {})) {
      if (!reported.has(node)) tell(id, done.meta?.[node]?.display_node ?? node, output);
    }
    settle(id, done?.status?.status_str === "success");
    if (!queue.queue_running.some(isOurs)) end();
  }
  // An idle server sends no other status.
  await endIfIdle();
}

app.registerExtension({
  name: "OmniGen2.Runs",
  setup() {
    followOpening();
    followQueue();
    api.addEventListener("execution_start", ({ detail }) => {
      runs.set(detail.prompt_id, { reported: new Set(), gap: false });
    });
    api.addEventListener("executed", ({ detail }) => {
      runs.get(detail.prompt_id)?.reported.add(detail.node);
      tell(detail.prompt_id, detail.display_node ?? detail.node, detail.output);
    });
    for (const kind of ENDS) {
      api.addEventListener(kind, ({ detail }) => {
        const run = detail.prompt_id;
        // What is missing of a run that succeeded may be the answer that is awaited of it.
        if (kind !== SUCCESS || !runs.get(run)?.gap) settle(run, kind === SUCCESS);
        if (!runs.get(run)?.gap) runs.delete(run);
        end();
      });
    }
    api.addEventListener("reconnected", doubt);
    // The server sends it to a page that connects, and when it has put a run into its history.
    api.addEventListener("status", ({ detail }) => {
      if (detail?.exec_info?.queue_remaining === 0) askTwice(endIfIdle);
      if (detail && [...runs.values()].some(({ gap }) => gap)) askTwice(makeUp);
    });
  },
});
