// Answers as they are written: one request a part of a round, stopped together or alone.

import { post, ServerError, stream } from './api.js';
import { model, state, tell } from './state.js';
import * as store from './store.js';
import * as thread from './thread.js';

const WRITTEN = 512; // tokens, where a text is continued and no limit was set: the route's own default is a few words
const running = new Map(); // conversation's id: {conv, parts: Map of part: AbortController}

/** The conversation in memory while answers of it are being written. */
export const live = id => running.get(id)?.conv;
export const busy = conv => running.has(conv?.id);

export function stop(conv, part = null) {
  for (const [one, controller] of running.get(conv?.id)?.parts ?? []) if (!part || one === part) controller.abort();
}

/** Write all parts of a round that wait. */
export async function run(conv, round) {
  const waiting = round.parts.map((part, i) => [part, i]).filter(([part]) => part.state === 'waiting');
  await Promise.all(waiting.map(([, i]) => write(conv, round, i)));
}

async function write(conv, round, index) {
  const part = round.parts[index], controller = new AbortController();
  if (!running.has(conv.id)) running.set(conv.id, { conv, parts: new Map() });
  running.get(conv.id).parts.set(part, controller);
  tell('busy', conv);
  keep(conv);
  const began = performance.now();
  let saved = began, count = part.tokens?.length ?? 0;
  const before = count;
  try {
    for await (const chunk of await chunks(conv, round, index, controller.signal)) {
      const now = performance.now();
      if (take(part, chunk)) {
        part.state = 'writing';
        part.took ??= { first: now - began };
        count += 1;
        tell('part', conv, round, index);
      }
      if (chunk.usage) part.usage = { prompt: chunk.usage.prompt_tokens, written: chunk.usage.completion_tokens };
      if (now - saved > 2000) { saved = now; keep(conv); }
    }
    part.state = 'done';
  } catch (error) {
    failed(part, error);
  }
  if (part.took) {
    part.took.all = performance.now() - began;
    part.took.tokens = part.usage?.written ?? count - before;
  }
  delete part.usage;
  const { parts } = running.get(conv.id);
  parts.delete(part);
  if (!parts.size) running.delete(conv.id);
  conv.updated = Date.now();
  tell('part', conv, round, index);
  tell('busy', conv);
  keep(conv);
}

function failed(part, error) {
  if (error.name === 'AbortError') { part.state = 'stopped'; return; }
  part.state = 'failed';
  part.error = error instanceof ServerError ? error.message : `The answer could not be read: ${error.message}.`;
  if (error.retry) part.retry = error.retry;
}

export function keep(conv) {
  store.put(conv).then(() => tell('kept', conv), error => tell('unkept', error));
}

// ---- requests

/** How a model is talked to: by a template, by a text that it continues, or by one text that it answers. */
export function manner(name) {
  const known = model(name);
  if (known?.structure === 'encoder-decoder') return 'source';
  return known?.chats === false ? 'text' : 'chat';
}

async function chunks(conv, round, index, signal) {
  const part = round.parts[index], how = manner(part.model);
  const body = { model: part.model, ...conv.params, stream_options: { include_usage: true } };
  if (how === 'chat') {
    if (state.tokens) Object.assign(body, { logprobs: true, top_logprobs: 5 });
    const messages = thread.messages(conv, round, index);
    if (part.text) Object.assign(body, { continue_final_message: true, messages: [...messages, { role: 'assistant', content: part.text }] });
    return stream('v1/chat/completions', { messages, ...body }, signal);
  }
  if (state.tokens) body.logprobs = 5;
  const prompt = how === 'source' ? thread.source(conv, round) : thread.plain(conv, round, index) + part.text;
  body.max_tokens ??= how === 'source' ? WRITTEN : await room(part.model, prompt, signal);
  return stream('v1/completions', { ...body, prompt }, signal);
}

/** How many tokens may be written behind a text. A text has at most as many tokens as bytes: most need no counting. */
async function room(name, text, signal) {
  const context = model(name)?.context || Infinity, left = context - new TextEncoder().encode(text).length;
  if (left >= WRITTEN / 4) return Math.min(WRITTEN, left);
  const { tokens } = await post('tokenize', { model: name, content: text, add_special: true }, signal);
  return Math.max(1, Math.min(WRITTEN, context - tokens.length));
}

/** Whether a model can go on from a text that it has begun; an encoder-decoder begins its own. */
export const goesOn = name => manner(name) !== 'source';

/** A part that goes on from the first `upto` tokens of another and, where given, one more. */
export function onward(part, upto, next = null) {
  const tokens = structuredClone(part.tokens?.slice(0, upto) ?? []);
  if (next) tokens.push({ t: next.t, p: next.p, top: structuredClone(part.tokens[upto].top), chosen: true });
  return { model: part.model, text: textOf(tokens), tokens, state: 'waiting' };
}

/** The same part, to be written further. */
export function further(part) {
  const tokens = part.tokens ? { tokens: structuredClone(part.tokens) } : {};
  return { model: part.model, text: part.text, ...tokens, state: 'waiting' };
}

// ---- chunks

/** Add what a chunk brings to a part; whether it brought any text. */
function take(part, chunk) {
  const choice = chunk.choices?.[0];
  if (!choice) return false;
  const text = choice.delta ? choice.delta.content ?? '' : choice.text ?? '';
  part.text += text;
  const tokens = choice.logprobs ? (choice.logprobs.content ?? []).map(fromChat).concat(fromText(choice.logprobs, text)) : [];
  if (tokens.length) part.tokens = [...(part.tokens ?? []), ...tokens];
  if (choice.finish_reason) part.finish = choice.finish_reason;
  return text !== '' || tokens.length > 0;
}

const torn = text => text.includes('\ufffd');

function fromChat({ token, logprob, bytes, top_logprobs: top }) {
  const half = bytes && torn(token) ? { b: bytes } : {};
  return { t: token, p: logprob, ...half, top: (top ?? []).map(other => [other.token, other.logprob]) };
}

/** This route sends no bytes: tokens that are parts of characters become one, whose text the chunk has. */
function fromText({ tokens, token_logprobs: logs, top_logprobs: tops }, text) {
  const all = (tokens ?? []).map((t, i) => ({ t, p: logs[i] ?? 0, top: Object.entries(tops?.[i] ?? {}).sort((a, b) => b[1] - a[1]) }));
  const first = all.findIndex(({ t }) => torn(t)), end = all.findLastIndex(({ t }) => torn(t)) + 1;
  if (first < 0) return all;
  const joined = list => list.map(({ t }) => t).join(''), before = joined(all.slice(0, first)), after = joined(all.slice(end));
  if (!text.startsWith(before) || !text.endsWith(after) || text.length <= before.length + after.length) return all;
  const held = all.slice(first, end), whole = text.slice(before.length, text.length - after.length);
  return [...all.slice(0, first), { ...held[0], t: whole, p: held.reduce((sum, { p }) => sum + p, 0) }, ...all.slice(end)];
}

/** Tokens in groups that are whole characters: [{from, to, text}]. */
export function groups(tokens) {
  const found = [];
  for (let i = 0; i < tokens.length;) {
    let end = i + 1, { t: text, b: bytes } = tokens[i];
    if (bytes) {
      const all = [...bytes];
      text = decoded(all);
      while (torn(text) && tokens[end]?.b && end - i < 8) { all.push(...tokens[end].b); end += 1; text = decoded(all); }
    }
    found.push({ from: i, to: end, text });
    i = end;
  }
  return found;
}

const decoded = bytes => new TextDecoder().decode(Uint8Array.from(bytes));
export const textOf = tokens => groups(tokens).map(group => group.text).join('');
