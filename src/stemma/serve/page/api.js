// What the page asks of the server: OpenAI's routes and a few of our own. Errors become one sentence.

export class ServerError extends Error {
  constructor(message, { status = 0, retry = 0 } = {}) {
    super(message);
    this.status = status;
    this.retry = retry; // seconds after which the server asks to be tried again
  }
}

const KEY = 'stemma.key'; // kept until the tab is closed
let asking = null;
let askForKey = async () => null;

/** `ask(sentence)` opens the field for a key and resolves to it, or to null when it was closed. */
export function onKey(ask) { askForKey = ask; }

const address = path => new URL(path, document.baseURI);

async function send(path, options, signal) {
  for (let tries = 0; ; tries += 1) {
    const headers = { ...(options.body ? { 'Content-Type': 'application/json' } : {}) };
    const key = sessionStorage.getItem(KEY);
    if (key) headers.Authorization = `Bearer ${key}`;
    let response;
    try {
      response = await fetch(address(path), { ...options, headers, signal, cache: 'no-store' });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new ServerError(`The server at ${location.host} cannot be reached. Is it still running?`);
    }
    if (response.ok) return response;
    const error = await refused(response);
    if (response.status !== 401) throw error;
    asking ??= askForKey(tries || key ? error.message : '').finally(() => { asking = null; });
    const typed = await asking;
    if (typed === null) throw error;
    sessionStorage.setItem(KEY, typed);
  }
}

async function refused(response) {
  const { status } = response;
  let said = '';
  try {
    const body = await response.json();
    said = body?.error?.message ?? (typeof body?.error === 'string' ? body.error : body?.detail) ?? '';
  } catch { /* no JSON: the status has to do */ }
  const retry = Number(response.headers.get('Retry-After')) || 0;
  return new ServerError(sentence(status, String(said), retry), { status, retry });
}

function sentence(status, said, retry) {
  if (status === 401) return said || 'The server asks for an API key.';
  if (status === 429) {
    const wait = retry ? `Try again in ${retry} second${retry === 1 ? '' : 's'}.` : 'Try again in a moment.';
    return `The server is busy. ${wait}`;
  }
  if (said) return said;
  if (status === 404) return 'The server does not know this route; it may be another version.';
  if (status === 413) return 'That is more text than the server takes at once.';
  if (status === 503) return 'The server is not ready yet; the model may still be loading.';
  return `The server answered with error ${status}.`;
}

export const server = { feedback: false }; // whether it keeps what people think of answers

export async function models() {
  const { data, stemma } = await (await send('v1/models', {})).json();
  server.feedback = Boolean(stemma?.feedback);
  return data.map(entry => ({
    id: entry.id,
    family: '', lineage: [], structure: 'decoder', writes: true, context: 0, parameters: 0,
    ...(entry.stemma || {}),
  }));
}

export async function post(path, body, signal) {
  return (await send(path, { method: 'POST', body: JSON.stringify(body) }, signal)).json();
}

/** The chunks of a streamed answer, as they come. */
export async function* stream(path, body, signal) {
  const options = { method: 'POST', body: JSON.stringify({ ...body, stream: true }) };
  const response = await send(path, options, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader(); // joins bytes of one character
  let rest = '';
  try {
    for (;;) {
      const { value, done } = await read(reader);
      const lines = (rest + (value ?? '')).split('\n');
      rest = done ? '' : lines.pop();
      for (const line of lines) {
        if (!line.startsWith('data:')) continue;
        const text = line.slice(5).trim();
        if (text === '[DONE]') return;
        const chunk = JSON.parse(text);
        if (chunk.error) throw new ServerError(chunk.error.message || 'The server met an error.');
        yield chunk;
      }
      if (done) break;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ServerError('The answer broke off: the connection was closed before its end.');
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServerError('The answer broke off: the connection to the server was lost.');
  }
}
