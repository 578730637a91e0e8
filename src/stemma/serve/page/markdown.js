// Markdown as elements. Nothing is ever parsed as HTML: what a model writes becomes text nodes of known elements, and
// links lead to http and https only. Time grows with the length of the text, whatever it holds.

import { copyButton, h } from './dom.js';
import { coloured } from './colour.js';

const DEPTH = 10; // lists in lists, quotes in quotes, bold in italic: deeper is plain text
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;
const QUOTE = /^ {0,3}>/;
const DELIMITERS = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

const blank = line => line.trim() === '';
const indent = line => line.length - line.trimStart().length;
const isTable = (lines, i) => lines[i].includes('|') && i + 1 < lines.length && lines[i + 1].includes('-')
  && lines[i + 1].length < 2000 && DELIMITERS.test(lines[i + 1]) && cells(lines[i]).length === cells(lines[i + 1]).length;

function starts(lines, i) {
  const line = lines[i];
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line) || isTable(lines, i);
}

/** The blocks of a text: {kind, lines, ...}. */
export function blocks(text) {
  const lines = text.replaceAll('\r\n', '\n').replaceAll('\t', '    ').split('\n'), found = [];
  for (let i = 0; i < lines.length;) {
    const [block, next] = blank(lines[i]) ? [null, i + 1] : oneBlock(lines, i);
    if (block) found.push({ ...block, text: lines.slice(i, next).join('\n') });
    i = next;
  }
  return found;
}

function oneBlock(lines, i) {
  const fence = FENCE.exec(lines[i]), heading = HEADING.exec(lines[i]);
  if (lines[i].startsWith('<think>')) {
    let end = i;
    while (end < lines.length && !lines[end].includes('</think>')) end += 1;
    const done = end < lines.length, [before, after] = (lines[end] ?? '').split('</think>');
    const body = [...lines.slice(i, end), before].join('\n').slice('<think>'.length);
    if (after?.trim()) lines.splice(end + 1, 0, after);
    return [{ kind: 'thought', body, done }, end + 1];
  }
  if (fence) {
    let end = i + 1;
    const close = line => line.trim().startsWith(fence[1]) && line.trim().replaceAll(fence[1][0], '') === '';
    while (end < lines.length && !close(lines[end])) end += 1;
    const margin = indent(lines[i]), body = lines.slice(i + 1, end);
    const code = body.map(line => line.slice(Math.min(margin, indent(line)))).join('\n');
    return [{ kind: 'code', language: fence[2].trim().split(/\s/)[0], code }, end + 1];
  }
  if (heading) return [{ kind: 'heading', level: heading[1].length, body: (heading[2] ?? '').replace(/ #+\s*$/, '') }, i + 1];
  if (RULE.test(lines[i])) return [{ kind: 'rule' }, i + 1];
  if (QUOTE.test(lines[i])) {
    let end = i;
    while (end < lines.length && QUOTE.test(lines[end])) end += 1;
    return [{ kind: 'quote', body: lines.slice(i, end).map(line => line.replace(/^ {0,3}> ?/, '')).join('\n') }, end];
  }
  if (ITEM.test(lines[i])) return list(lines, i);
  if (isTable(lines, i)) {
    let end = i + 2;
    while (end < lines.length && !blank(lines[end]) && lines[end].includes('|')) end += 1;
    return [{ kind: 'table', rows: [lines[i], ...lines.slice(i + 2, end)].map(cells), align: cells(lines[i + 1]) }, end];
  }
  let end = i + 1;
  while (end < lines.length && !blank(lines[end]) && !starts(lines, end)) end += 1;
  return [{ kind: 'paragraph', body: lines.slice(i, end).map(line => line.trim()).join('\n') }, end];
}

function list(lines, i) {
  const first = ITEM.exec(lines[i]), margin = first[1].length, ordered = /\d/.test(first[2]), items = [];
  let loose = false, end = i, gap = false;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    if (blank(line)) { gap = true; continue; }
    const item = ITEM.exec(line), deep = indent(line);
    if (item && deep < margin + 2 && !RULE.test(line)) {
      if (deep < margin || /\d/.test(item[2]) !== ordered) break;
      loose ||= gap && items.length > 0;
      items.push({ width: item[0].length, lines: [line.slice(item[0].length)] });
    } else if (deep >= margin + 2) {
      const { width, lines: held } = items.at(-1);
      if (gap) held.push('');
      held.push(line.slice(Math.min(deep, width)));
    } else {
      if (gap || starts(lines, end)) break;
      items.at(-1).lines.push(line.trim());
    }
    gap = false;
  }
  while (blank(lines[end - 1])) end -= 1;
  return [{ kind: 'list', ordered, start: ordered ? parseInt(first[2], 10) : 1, loose,
    items: items.map(item => item.lines.join('\n')) }, end];
}

function cells(row) {
  const found = [''];
  let code = false;
  const line = row.trim().replace(/^\|/, '').replace(/\|$/, '');
  for (let i = 0; i < line.length; i += 1) {
    if (line[i] === '\\' && line[i + 1] === '|') { found[found.length - 1] += '|'; i += 1; continue; }
    if (line[i] === '`') code = !code;
    if (line[i] === '|' && !code) found.push(''); else found[found.length - 1] += line[i];
  }
  return found.map(cell => cell.trim());
}

/** The element of a block. */
function element(block, depth) {
  const dir = { dir: 'auto' };
  switch (block.kind) {
    case 'code': return codeBlock(block);
    case 'heading': return h(`h${Math.min(6, block.level + 2)}`, dir, ...inline(block.body));
    case 'rule': return h('hr');
    case 'thought': return h('details', { class: 'thought', open: !block.done }, h('summary', {}, block.done ? 'Thought' : 'Thinking…'), ...inner(block.body, depth));
    case 'quote': return h('blockquote', dir, ...inner(block.body, depth));
    case 'table': return table(block);
    case 'list': {
      const items = block.items.map(text => h('li', dir, ...itemContent(text, block.loose, depth)));
      return h(block.ordered ? 'ol' : 'ul', block.start !== 1 ? { start: block.start } : {}, ...items);
    }
    default: return h('p', dir, ...inline(block.body));
  }
}

const inner = (text, depth) => (depth >= DEPTH ? [text] : blocks(text).map(block => element(block, depth + 1)));

function itemContent(text, loose, depth) {
  const task = /^\[([ xX])\]\s+/.exec(text);
  const box = task ? [h('span', { class: 'task', 'aria-label': task[1] === ' ' ? 'open' : 'done' }, task[1] === ' ' ? '☐ ' : '☑ ')] : [];
  const nodes = inner(task ? text.slice(task[0].length) : text, depth);
  if (!loose && nodes[0]?.tagName === 'P') nodes.splice(0, 1, ...nodes[0].childNodes);
  return [...box, ...nodes];
}

function table({ rows, align }) {
  const sides = align.map(cell => (cell.endsWith(':') ? (cell.startsWith(':') ? 'middle' : 'end') : ''));
  const row = (list, tag) => h('tr', {}, ...sides.map((side, i) => h(tag, { class: side || null, dir: 'auto' }, ...inline(list[i] ?? ''))));
  return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Table' },
    h('table', {}, h('thead', {}, row(rows[0], 'th')), h('tbody', {}, ...rows.slice(1).map(list => row(list, 'td')))));
}

function codeBlock({ language, code }) {
  const name = /^[\w+#.-]{1,24}$/.test(language) ? language : '';
  return h('figure', { class: 'code' },
    h('figcaption', {}, h('span', {}, name || 'text'), copyButton(() => code, 'Copy the code')),
    h('pre', { tabindex: '0', dir: 'ltr' }, h('code', {}, ...coloured(code, name))));
}

// ---- inside a line

const LINK = /!?\[([^[\]]{0,1000})\]\(\s*<?([^\s()<>]{0,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500}){0,4})>?(?:\s+"[^"\n]{0,300}")?\s*\)/y;
const ADDRESS = /https?:\/\/[^\s<>"'`]{1,2000}/y;
const PLAIN = /[^\\`*_~![\nh]+|h(?!ttps?:)/y;
const word = char => char !== undefined && /[\p{L}\p{N}_]/u.test(char);

/** The nodes of a text inside a block. */
export function inline(text, depth = 0) {
  const nodes = [], without = new Set(); // delimiters that nothing closes any more
  let held = '';
  const flush = () => { if (held) nodes.push(held); held = ''; };
  const match = (pattern, at) => { pattern.lastIndex = at; return pattern.exec(text); };
  for (let i = 0; i < text.length;) {
    const plain = match(PLAIN, i);
    if (plain) { held += plain[0]; i += plain[0].length; continue; }
    const found = special(text, i, match, without, depth);
    if (found) { flush(); nodes.push(found[0]); i = found[1]; } else {
      const escaped = text[i] === '\\' && /[!-/:-@[-`{-~]/.test(text[i + 1] ?? '');
      const run = escaped ? text[i + 1] : /^(?:\*+|_+|~+|`+)/.exec(text.slice(i, i + 64))?.[0] ?? text[i];
      held += run;
      i += escaped ? 2 : run.length;
    }
  }
  flush();
  return nodes;
}

function special(text, i, match, without, depth) {
  switch (text[i]) {
    case '\n': return [h('br'), i + 1];
    case '\\': return formula(text, i, without);
    case '`': return codeSpan(text, i, without);
    case '!': case '[': {
      const link = match(LINK, i);
      return link && [anchor(link[2], link[1] || link[2], depth), i + link[0].length];
    }
    case 'h': {
      const address = match(ADDRESS, i);
      if (!address || word(text[i - 1])) return null;
      let url = address[0].replace(/[.,;:!?*_~\]]+$/, '');
      if (url.endsWith(')') && !url.includes('(')) url = url.slice(0, -1);
      return [anchor(url, null, depth, url), i + url.length];
    }
    case '*': case '_': case '~': return emphasis(text, i, without, depth);
    default: return null;
  }
}

const FORMULAS = { '\\(': '\\)', '\\[': '\\]' };

/** A formula in TeX stays as it is written. */
function formula(text, i, without) {
  const close = FORMULAS[text.slice(i, i + 2)], at = close && !without.has(close) ? text.indexOf(close, i + 2) : -1;
  if (at > 0) return [h('span', { class: 'formula' }, text.slice(i, at + 2)), at + 2];
  if (close) without.add(close);
  return null;
}

function codeSpan(text, i, without) {
  let n = 1;
  while (text[i + n] === '`') n += 1;
  const ticks = '`'.repeat(n);
  if (without.has(ticks)) return null;
  for (let at = text.indexOf(ticks, i + n); at >= 0; ) {
    let end = at;
    while (text[end] === '`') end += 1;
    if (end - at === n) {
      const code = text.slice(i + n, at).replaceAll('\n', ' ');
      return [h('code', {}, /^ .* $/.test(code) && code.trim() ? code.slice(1, -1) : code), end];
    }
    at = text.indexOf(ticks, end);
  }
  without.add(ticks);
  return null;
}

const TAGS = { '**': 'strong', __: 'strong', '*': 'em', _: 'em', '~~': 'del' };

function emphasis(text, i, without, depth) {
  const two = text.slice(i, i + 2), sign = two in TAGS ? two : text[i];
  const after = text[i + sign.length];
  if (!(sign in TAGS) || depth >= DEPTH || without.has(sign) || !after || /\s/.test(after)) return null;
  if (sign[0] === '_' && word(text[i - 1])) return null;
  for (let at = text.indexOf(sign, i + sign.length); at >= 0; at = text.indexOf(sign, at + 1)) {
    if (/\s/.test(text[at - 1])) continue;
    if (sign[0] === '_' && word(text[at + sign.length])) continue;
    if (sign.length === 1 && text[at + 1] === sign) { at += 1; continue; } // a doubled sign inside a single one
    if (sign.length === 2 && text[at + 2] === sign[0]) at += 1; // the inner one of three closes first
    if (at <= i + sign.length) continue;
    return [h(TAGS[sign], {}, ...inline(text.slice(i + sign.length, at), depth + 1)), at + sign.length];
  }
  without.add(sign);
  return null;
}

/** A link, where its address is of the web; else its words. */
function anchor(address, words, depth, shown = address) {
  const inside = words === null ? [shown] : depth >= DEPTH ? [words] : inline(words, DEPTH - 1);
  if (!/^https?:\/\/[^/]/i.test(address)) return h('span', {}, ...inside);
  return h('a', { href: address, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...inside);
}

// ---- a text that grows

/** Shows a text in an element; blocks that did not change stay as they are, so a growing text costs its last block. */
export class Markdown {
  constructor(into) { this.into = into; this.shown = []; }

  show(text) {
    const now = blocks(text);
    let same = 0;
    while (same < now.length && same < this.shown.length && now[same].text === this.shown[same]) same += 1;
    while (this.into.childElementCount > same) this.into.lastElementChild.remove();
    for (const block of now.slice(same)) this.into.append(element(block, 0));
    this.shown = now.map(block => block.text);
  }
}
