// Colours of code: comments, strings, numbers and words of the language, by one pattern for all languages.

import { h } from './dom.js';

const WORDS = new Set(('abstract and as assert async await break case catch class const continue def default del do '
  + 'elif else enum except export extends extern false finally fn for from func function global go if impl import in '
  + 'instanceof interface is lambda let loop match mod mut namespace new nil none not null operator or package pass '
  + 'private protected pub public raise return self static struct super switch template then this throw throws trait '
  + 'true try type typeof union unless unsafe until use using var virtual void where while with yield None True False '
  + 'SELECT FROM WHERE INSERT INTO UPDATE DELETE CREATE TABLE JOIN LEFT RIGHT INNER ON GROUP ORDER BY LIMIT AND OR NOT '
  + 'NULL AS VALUES SET int float double char bool boolean string str long short unsigned echo fi done esac local').split(' '));
const HASH = new Set(['python', 'py', 'bash', 'sh', 'shell', 'zsh', 'ruby', 'rb', 'yaml', 'yml', 'toml', 'r', 'perl', 'make', 'dockerfile', 'ini', 'conf']);
const DASH = new Set(['sql', 'lua', 'haskell', 'hs', 'ada']);
const PLAIN = new Set(['', 'text', 'txt', 'plain', 'plaintext', 'markdown', 'md', 'log', 'output', 'console', 'csv']);
const MOST = 20000; // characters beyond which code stays plain

const REST = String.raw`|"""[\s\S]*?(?:"""|$)|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|\x60(?:[^\x60\\]|\\.)*\x60?|\b\d[\w.]*|[A-Za-z_$][\w$]*`;

export function coloured(code, language) {
  const name = language.toLowerCase();
  if (PLAIN.has(name) || code.length > MOST) return [code];
  const comment = HASH.has(name) ? String.raw`#[^\n]*` : DASH.has(name) ? String.raw`--[^\n]*`
    : String.raw`\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)|<!--[\s\S]*?(?:-->|$)`;
  const nodes = [];
  let end = 0;
  for (const found of code.matchAll(new RegExp(comment + REST, 'g'))) {
    const [text] = found, kind = kindOf(text);
    if (!kind) continue;
    if (found.index > end) nodes.push(code.slice(end, found.index));
    nodes.push(h('span', { class: kind }, text));
    end = found.index + text.length;
  }
  nodes.push(code.slice(end));
  return nodes;
}

function kindOf(text) {
  if (/^["'`]/.test(text)) return 'str';
  if (/^(?:#|\/\/|\/\*|--|<!)/.test(text)) return 'rem';
  if (/^\d/.test(text)) return 'num';
  return WORDS.has(text) ? 'key' : '';
}
