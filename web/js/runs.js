// What runs report, for the other files here. While the page is not connected the server's messages go nowhere: what it
// missed is had from the server's history afterwards. A server that was restarted has none, and its run has ended.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

const onExecuted = [];
const onEnded = [];

// The runs that have begun, by id: {told, gap}, the nodes that have reported and whether messages may be missing.
const runs = new Map();

// react(path, output) is called when a node has reported; inside a subgraph its path is "12:3", see findNode.
export function whenExecuted(react) {
  onExecuted.push(react);
}

// react() is called when a run has ended in whatever way, and no other of this page's is under way.
export function whenEnded(react) {
  onEnded.push(react);
}

function tell(path, output) {
  for (const react of onExecuted) react(path, output ?? {});
}

function end() {
  for (const react of onEnded) react();
}

async function get(path) {
  const answer = await api.fetchApi(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
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
      if (!told.has(node)) tell(done.meta?.[node]?.display_node ?? node, output);
    }
    if (!queue.queue_running.some(isOurs)) end();
  }
}

app.registerExtension({
  name: "OmniGen2.Runs",
  setup() {
    api.addEventListener("execution_start", ({ detail }) => {
      runs.set(detail.prompt_id, { told: new Set(), gap: false });
    });
    api.addEventListener("executed", ({ detail }) => {
      runs.get(detail.prompt_id)?.told.add(detail.node);
      tell(detail.display_node ?? detail.node, detail.output);
    });
    for (const kind of ENDS) {
      api.addEventListener(kind, ({ detail }) => {
        if (!runs.get(detail.prompt_id)?.gap) runs.delete(detail.prompt_id);
        end();
      });
    }
    api.addEventListener("reconnected", () => {
      for (const run of runs.values()) run.gap = true;
    });
    // The server sends it to a page that connects, and when it has put a run into its history.
    api.addEventListener("status", ({ detail }) => {
      // Where the server cannot be asked, the next status is soon enough.
      if (detail && [...runs.values()].some(({ gap }) => gap)) makeUp().catch(() => {});
    });
  },
});
