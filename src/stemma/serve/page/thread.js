// A conversation as data: a tree of messages, of which one path is shown. No elements here.
//
// {id, title, created, updated, system, params, models: [name], nodes: {id: node}, chosen: {parent or '': child}}
// node: {id, parent, role: 'user', text} or {id, parent, role: 'assistant', parts: [part]}: one part a model.
// part: {model, text, state: 'waiting' | 'writing' | 'done' | 'stopped' | 'failed', finish, error, tokens, took, edited}

export const VERSION = 1;

// crypto.randomUUID is missing on pages that come over plain http from another machine
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('');
}

export function begin(models, { system = '', params = {} } = {}) {
  const now = Date.now();
  return { version: VERSION, id: newId(), title: '', created: now, updated: now, system, params: { ...params },
    models: [...models], nodes: {}, chosen: {} };
}

/** The nodes that are shown, first to last. */
export function path(conv) {
  const nodes = [], seen = new Set();
  for (let at = conv.chosen['']; at && conv.nodes[at] && !seen.has(at); at = conv.chosen[at]) {
    seen.add(at);
    nodes.push(conv.nodes[at]);
  }
  return nodes;
}

export function siblings(conv, node) {
  return Object.values(conv.nodes).filter(other => other.parent === node.parent);
}

/** All nodes by what they follow. */
export const followers = conv => Map.groupBy(Object.values(conv.nodes), node => node.parent);

/** The nodes above `node`, first to last. */
export function above(conv, node) {
  const nodes = [];
  for (let at = conv.nodes[node.parent]; at; at = conv.nodes[at.parent]) nodes.unshift(at);
  return nodes;
}

function add(conv, parent, node) {
  const full = { id: newId(), parent, ...node };
  conv.nodes[full.id] = full;
  conv.chosen[parent ?? ''] = full.id;
  conv.updated = Date.now();
  return full;
}

export function ask(conv, text, parent = path(conv).at(-1)?.id ?? null) {
  if (!conv.title) conv.title = titled(text);
  return add(conv, parent, { role: 'user', text });
}

export function titled(text) {
  const line = text.trim().split('\n')[0].trim();
  return line.length > 60 ? `${Array.from(line).slice(0, 58).join('').trimEnd()}…` : line;
}

export const blank = model => ({ model, text: '', state: 'waiting' });

/** A round of answers to the user's message: one part a model of the conversation. */
export function answer(conv, parent, parts = conv.models.map(blank)) {
  return add(conv, parent, { role: 'assistant', parts });
}

/** A branch beside a round in which one part is another; the other parts stay as they are. */
export function instead(conv, round, index, part) {
  return answer(conv, round.parent, round.parts.map((old, i) => (i === index ? part : structuredClone(old))));
}

/** Show the sibling `by` places away. */
export function walk(conv, node, by) {
  const all = siblings(conv, node), to = all[all.indexOf(node) + by];
  if (to) conv.chosen[node.parent ?? ''] = to.id;
  return to;
}

/** A round's part in the column of `model`: the same model, else the same place, else the first. */
function column(round, model, index) {
  if (round.parts[index]?.model === model) return round.parts[index]; // one model may stand in two columns
  return round.parts.find(part => part.model === model) ?? round.parts[index] ?? round.parts[0];
}

/** What the model of a part has been told, as OpenAI's messages. */
export function messages(conv, round, index) {
  const { model } = round.parts[index];
  const told = above(conv, round).map(node => (node.role === 'user'
    ? { role: 'user', content: node.text }
    : { role: 'assistant', content: column(node, model, index).text }));
  return conv.system.trim() ? [{ role: 'system', content: conv.system }, ...told] : told;
}

/** The same as one text, for models without a template: a new line parts what would run together. */
export function plain(conv, round, index) {
  const { model } = round.parts[index];
  let text = '';
  for (const node of above(conv, round)) {
    const next = node.role === 'user' ? node.text : column(node, model, index).text;
    const joined = !text || node.role === 'assistant' || /\s$/.test(text) || /^[\s.,;:!?)\]}]/.test(next);
    text += joined ? next : `\n${next}`;
  }
  return text;
}

/** The last thing that was asked, for encoder-decoders: they answer one text. */
export function source(conv, round) {
  return above(conv, round).at(-1)?.text ?? '';
}

/** Parts that were being written when the page was closed are stopped now. */
export function settle(conv) {
  for (const node of Object.values(conv.nodes)) {
    for (const part of node.parts ?? []) if (part.state === 'waiting' || part.state === 'writing') part.state = 'stopped';
  }
  return conv;
}

/** A conversation out of unknown data, or an Error that says what is wrong with it. */
export function checked(data) {
  const wrong = what => { throw new Error(`this is no conversation of Stemma: ${what}`); };
  const text = (value, name) => (typeof value === 'string' ? value : wrong(`${name} is not text`));
  if (!data || typeof data !== 'object' || Array.isArray(data)) wrong('it is not an object');
  if (data.version !== VERSION) wrong(`its version is ${JSON.stringify(data.version)}, not ${VERSION}`);
  if (!Array.isArray(data.models) || !data.models.every(name => typeof name === 'string')) wrong('models is not a list of names');
  if (!data.nodes || typeof data.nodes !== 'object') wrong('nodes are missing');
  const conv = begin(data.models, { system: text(data.system ?? '', 'system'), params: numbers(data.params) });
  conv.title = text(data.title ?? '', 'title');
  conv.created = Number(data.created) || conv.created;
  conv.updated = Number(data.updated) || conv.updated;
  for (const [id, node] of Object.entries(data.nodes)) {
    if (!/^[A-Za-z0-9][\w-]{0,63}$/.test(id) || node?.id !== id) wrong(`a message has the id ${JSON.stringify(id)}`);
    if (node.parent !== null && !Object.hasOwn(data.nodes, node.parent)) wrong(`message ${id} follows one that is missing`);
    conv.nodes[id] = node.role === 'user'
      ? { id, parent: node.parent, role: 'user', text: text(node.text, 'a message') }
      : { id, parent: node.parent, role: 'assistant', parts: parts(node, wrong, text) };
  }
  for (const id of Object.keys(conv.nodes)) {
    let at = id;
    for (let n = 0; at !== null; n += 1) {
      if (n > Object.keys(conv.nodes).length) wrong('its messages follow each other in a circle');
      at = conv.nodes[at].parent;
    }
  }
  for (const [parent, child] of Object.entries(data.chosen ?? {})) {
    if (conv.nodes[child] && (conv.nodes[child].parent ?? '') === parent) conv.chosen[parent] = child;
  }
  for (const node of Object.values(conv.nodes)) conv.chosen[node.parent ?? ''] ??= node.id;
  return settle(conv);
}

function parts(node, wrong, text) {
  if (node.role !== 'assistant' || !Array.isArray(node.parts) || !node.parts.length) wrong('a message is nobody\'s');
  return node.parts.map(part => {
    const kept = { model: text(part?.model, 'a model'), text: text(part.text, 'an answer'), state: 'done' };
    for (const key of ['state', 'finish', 'error', 'rated']) if (typeof part[key] === 'string') kept[key] = part[key];
    if (Array.isArray(part.tokens) && part.tokens.every(t => typeof t?.t === 'string' && typeof t.p === 'number')) {
      kept.tokens = part.tokens.map(({ t, p, b, top }) => ({ t, p,
        ...(Array.isArray(b) ? { b: b.filter(Number.isInteger) } : {}),
        top: Array.isArray(top) ? top.filter(a => typeof a?.[0] === 'string' && typeof a[1] === 'number') : [] }));
    }
    return kept;
  });
}

/** Settings of a conversation, by the names of the server's fields. */
export const PARAMS = ['temperature', 'top_p', 'top_k', 'min_p', 'max_tokens', 'seed', 'stop'];

function numbers(params) {
  const texts = value => Array.isArray(value) && value.every(text => typeof text === 'string');
  const kept = Object.entries(params ?? {}).filter(([name, value]) => PARAMS.includes(name)
    && (name === 'stop' ? texts(value) : typeof value === 'number'));
  return Object.fromEntries(kept);
}
