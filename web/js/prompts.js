// Parts of an API prompt, {path: {class_type, inputs}}. Nodes in a subgraph have paths such as "12:3", see findNode.

function sources({ inputs }) {
  return Object.values(inputs ?? {})
    .filter(Array.isArray)
    .map(([path]) => String(path));
}

// What runs for some outputs: they and all that they need.
export function partFor(prompt, targets) {
  const part = {};
  const left = targets.map(String);
  while (left.length) {
    const path = left.pop();
    if (Object.hasOwn(part, path) || !Object.hasOwn(prompt, path)) continue;
    part[path] = prompt[path];
    left.push(...sources(prompt[path]));
  }
  return part;
}

// The paths of a node and of all that hang on it, but for entries that isOut() names and what hangs on those alone.
export function pathsBehind(prompt, path, isOut) {
  const behind = new Set([path]);
  for (let size = 0; size < behind.size; ) {
    size = behind.size;
    for (const [other, entry] of Object.entries(prompt)) {
      if (sources(entry).some((source) => behind.has(source)) && !isOut(entry)) behind.add(other);
    }
  }
  return [...behind];
}
