// What runs report, for the other files here. While the page is not connected the server's messages go nowhere: what it
// missed is had from the server's history afterwards. A server that was restarted has none, and its run has ended.
// Nodes are known by their numbers, which every workflow has anew: what a run reports is for the workflow that it was
// queued from, and waits until that one is on the canvas.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { partFor } from "./prompts.js";

const SUCCESS = "execution_success";
const ENDS = [SUCCESS, "execution_error", "execution_interrupted"];

const onQueued = [];
const onExecuted = [];
const onEnded = [];

// The runs that have begun, by id: {told, gap}, the nodes that have reported and whether messages may be missing.
const runs = new Map();

// The workflow that each run was queued from, by the run's id, weakly: one that was closed is not kept. A program's runs and
// those from before the page was loaded have none here.
const owners = new Map();
const MOST_OWNERS = 2000;

// What is to be done when another workflow is on the canvas: {owner, key, react}.
let held = [];
const MOST_HELD = 200;

// How many prompts have been sent, and how many of them the server has not answered to.
let sent = 0;
let sending = 0;

// What undoes the taking note of each prompt that the server has taken, by its run's id, until that run ends. One that was
// taken out of the queue has no end, but the queue has. And whether the runs succeeded that ended before the server's answer.
const undoing = new Map();
const endedEarly = new Map();

// How many workflows are being opened: meanwhile the new one's nodes are there, and the one before is still the active one.
let opening = 0;

const active = () => app.extensionManager.workflow?.activeWorkflow ?? null;
const isOnCanvas = (owner) => !opening && owner === active();

// Whether what a run reports is for the workflow on the canvas. A run of which that is not known is taken for one of it.
export function isForCanvas(run) {
  return !owners.has(run) || isOnCanvas(owners.get(run).deref());
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
  held.push({ owner: owners.get(run).deref(), key, react });
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
        deliverHeld();
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
    const takeBack = onQueued.map((react) => react(sends));
    sent += 1;
    sending += 1;
    try {
      const answer = await queuePrompt.apply(this, values);
      const run = answer?.prompt_id;
      if (owner && run) owners.set(run, new WeakRef(owner));
      if (owners.size > MOST_OWNERS) owners.delete(owners.keys().next().value);
      if (run) undoing.set(run, takeBack);
      if (endedEarly.has(run)) settle(run, endedEarly.get(run));
      return answer;
    } catch (refused) {
      for (const undo of takeBack) undo();
      throw refused;
    } finally {
      sending -= 1;
    }
  };
}

// react(prompt) is called with what will run of the API prompt that the page is about to send, and returns what undoes it,
// which is called if the server does not take the prompt, or when its run has ended without having got that far.
export function whenQueued(react) {
  onQueued.push(react);
}

// react(path, output, known) is called when a node has reported; inside a subgraph its path is "12:3", see findNode. known:
// whether the run is known to be of the workflow on the canvas.
export function whenExecuted(react) {
  onExecuted.push(react);
}

// react(idle) is called when a run has ended in whatever way, and with true when nothing is queued any more: a run that was
// taken out of the queue has no end.
export function whenEnded(react) {
  onEnded.push(react);
}

function tell(run, path, output) {
  deliver(run, `executed ${run} ${path}`, () => {
    for (const react of onExecuted) react(path, output ?? {}, owners.has(run));
  });
}

function end(idle = false) {
  if (idle) for (const known of [undoing, endedEarly]) known.clear();
  for (const react of onEnded) react(idle);
}

// Undoes the taking note of a run's prompt unless all of it ran, or has that done once the run is known.
function settle(run, succeeded) {
  if (!undoing.has(run) && sending) endedEarly.set(run, succeeded);
  if (!succeeded) for (const undo of undoing.get(run) ?? []) undo();
  undoing.delete(run);
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

// Tells what is missing of the runs that the server is done with.
async function makeUp() {
  const queue = await get("/queue");
  const isOurs = ([, , , extra]) => extra?.client_id === api.clientId;
  const known = new Set([...queue.queue_running, ...queue.queue_pending].map(([, id]) => id));
  for (const [id, { told }] of [...runs].filter(([, { gap }]) => gap)) {
    const done = (await get(`/history/${id}`))[id];
    if ((known.has(id) && !done) || !runs.delete(id)) continue;
    for (const [node, output] of Object.entries(done?.outputs ?? {})) {
      if (!told.has(node)) tell(id, done.meta?.[node]?.display_node ?? node, output);
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
      runs.set(detail.prompt_id, { told: new Set(), gap: false });
    });
    api.addEventListener("executed", ({ detail }) => {
      runs.get(detail.prompt_id)?.told.add(detail.node);
      tell(detail.prompt_id, detail.display_node ?? detail.node, detail.output);
    });
    for (const kind of ENDS) {
      api.addEventListener(kind, ({ detail }) => {
        const run = detail.prompt_id;
        if (!runs.get(run)?.gap) runs.delete(run);
        settle(run, kind === SUCCESS);
        end();
      });
    }
    api.addEventListener("reconnected", () => {
      for (const run of runs.values()) run.gap = true;
    });
    // The server sends it to a page that connects, and when it has put a run into its history.
    api.addEventListener("status", ({ detail }) => {
      if (detail?.exec_info?.queue_remaining === 0) askTwice(endIfIdle);
      if (detail && [...runs.values()].some(({ gap }) => gap)) askTwice(makeUp);
    });
  },
});
