// Elements, icons, and small things that every part of the page uses. Text becomes text nodes, never markup.

export const $ = selector => document.querySelector(selector);

/** An element. Keys of `props`: `onclick` and the like add listeners, `class`, `data-*`, `aria-*` and others are
 *  attributes, true and false set or leave out an attribute, functions of `value` and `checked` are properties. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'value' || name === 'checked' || name === 'disabled' || name === 'hidden') element[name] = value;
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = 'http://www.w3.org/2000/svg';
const ICONS = {
  plus: 'M12 5v14M5 12h14',
  menu: 'M4 7h16M4 12h16M4 17h16',
  send: 'M12 19V5M6 11l6-6 6 6',
  stop: 'M7 7h10v10H7z',
  copy: 'M9 9h10v10H9zM15 9V5H5v10h4',
  check: 'M5 12.5l4.5 4.5L19 7.5',
  retry: 'M19 12a7 7 0 1 1-2.2-5.1M19 4v4.5h-4.5',
  edit: 'M5 19l1-4L16 5l3 3L9 18zM14 7l3 3',
  left: 'M14.5 6l-6 6 6 6',
  right: 'M9.5 6l6 6-6 6',
  down: 'M6 9.5l6 6 6-6',
  close: 'M6.5 6.5l11 11M17.5 6.5l-11 11',
  columns: 'M4 5h7v14H4zM13 5h7v14h-7z',
  sliders: 'M5 7h8M17 7h2M5 12h2M11 12h8M5 17h8M17 17h2M15 5v4M9 10v4M15 15v4',
  tokens: 'M4 6h5v5H4zM11 6h9v5h-9zM4 13h8v5H4zM14 13h6v5h-6z',
  trash: 'M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12',
  load: 'M12 15V4M8 8l4-4 4 4M5 15v4h14v-4',
  save: 'M12 4v11M8 11l4 4 4-4M5 15v4h14v-4',
  more: 'M5.5 12h.01M12 12h.01M18.5 12h.01',
  chat: 'M5 5h14v11h-8l-4 3.5V16H5z',
  fill: 'M4 17h4M16 17h4M10 9h4v8h-4zM4 13h3M17 13h3',
  embed: 'M5 5h6v6H5zM13 5h6v6h-6zM5 13h6v6H5zM13 13h6v6h-6z',
  write: 'M4 8h9M8.5 5v3M11 8c-1 4-4 6-6.500 7M6.500 11c1.500 2 3 3.200 5 4M12.500 19l3.750-9 3.750 9M13.700 16.500h5.100',
  sun: 'M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM12 3v2M12 19v2M3 12h2M19 12h2M5.600 5.600l1.400 1.400M17 17l1.400 1.400M5.600 18.400L7 17M17 7l1.400-1.400',
  keys: 'M3.500 7h17v10h-17zM7 10.500h.01M10.300 10.500h.01M13.700 10.500h.01M17 10.500h.01M8 13.800h8',
  up: 'M4 11h3v8H4zM7 11l4-7c1.500 0 2.300 1 2 2.500L12.500 10H19l-1.500 9H7',
  away: 'M4 5h3v8H4zM7 13l4 7c1.500 0 2.300-1 2-2.500L12.500 14H19l-1.500-9H7',
  star: 'M12 4l2.500 5.200 5.500.8-4 3.900 1 5.600-5-2.700-5 2.700 1-5.600-4-3.900 5.500-.8z',
  forward: 'M5 12h13M13 6.500l5.500 5.500-5.500 5.500',
};

export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg'), path = document.createElementNS(SVG, 'path');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

const MARKS = {
  encoder: 'M12 5.500a6.500 6.500 0 1 1 0 13 6.500 6.500 0 0 1 0-13z',
  decoder: 'M7 5.500L19 12 7 18.500z',
  'encoder-decoder': 'M12 4l8 8-8 8-8-8z',
};

/** The mark of a structure, as the picture of the family tree has it: circle, triangle, diamond. */
export function mark(structure) {
  const svg = icon('stop');
  svg.setAttribute('class', `mark ${structure in MARKS ? structure : ''}`);
  svg.firstChild.setAttribute('d', MARKS[structure] || MARKS.encoder);
  return svg;
}

/** A button that is an icon with a name for readers of the screen and a tooltip. */
export function tool(name, label, onclick, props = {}) {
  return h('button', { type: 'button', class: 'tool', 'aria-label': label, title: label, onclick, ...props }, icon(name));
}

export function copyButton(text, label = 'Copy') {
  const button = tool('copy', label, async () => {
    const done = await copy(text());
    button.replaceChildren(icon(done ? 'check' : 'close'));
    button.classList.add('done');
    say(done ? 'Copied' : 'The browser did not allow copying');
    setTimeout(() => { button.replaceChildren(icon('copy')); button.classList.remove('done'); }, 1400);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // pages that are not on https or localhost have no clipboard
    const area = h('textarea', { class: 'away', value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}

/** Tell something at the bottom of the page; `action` is [label, function] of a button beside it. */
export function toast(text, action = null, seconds = 6) {
  const line = h('div', { class: 'toast', role: 'status' }, text);
  const gone = () => line.remove();
  if (action) line.append(h('button', { type: 'button', onclick: () => { gone(); action[1](); } }, action[0]));
  line.append(tool('close', 'Close this message', gone));
  $('#toasts').append(line);
  setTimeout(gone, seconds * 1000);
}

/** Tell readers of the screen. */
export function say(text) { $('#said').textContent = text; }

/** Call `work` once at the next frame, however often it is asked for; pages in the background have no frames. */
export function framed(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    const run = () => { asked = false; work(); };
    if (document.hidden) setTimeout(run, 200); else requestAnimationFrame(run);
  };
}

export function download(name, text, type) {
  const link = h('a', { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** A number as people read it: 1,234 or 135M. */
export const count = n => Number(n).toLocaleString('en');
export function short(n) {
  for (const [unit, size] of [['T', 1e12], ['B', 1e9], ['M', 1e6], ['k', 1e3]]) {
    if (n >= size) return `${+(n / size).toPrecision(3)}${unit}`;
  }
  return String(n);
}
