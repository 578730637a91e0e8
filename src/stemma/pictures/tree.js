const all = query => [...document.querySelectorAll(query)];
const links = all('.row'), lines = all('.edge[data-to]'), articles = all('.about'), keys = all('.key[data-structure]');
const byName = new Map(links.map(link => [link.dataset.name, link]));
const search = document.getElementById('search'), found = document.getElementById('found');
const panel = document.getElementById('panel'), close = document.getElementById('close');
const beside = () => getComputedStyle(panel).position === 'sticky';
let kept = '';

// ---- the family in the panel, and the line of its ancestors in the picture
function show(name, open = true) {
  const line = new Set();
  for (let link = byName.get(name); link; link = byName.get(link.dataset.parent)) line.add(link.dataset.name);
  for (const link of links) {
    link.classList.toggle('chosen', link.dataset.name === name);
    link.classList.toggle('line', line.has(link.dataset.name));
    if (link.dataset.name === kept) link.setAttribute('aria-current', 'true'); else link.removeAttribute('aria-current');
  }
  for (const path of lines) {
    path.classList.toggle('on', line.has(path.dataset.to) && line.has(path.dataset.from));
    if (path.classList.contains('on')) path.parentNode.append(path);
  }
  for (const article of articles) article.hidden = (article.dataset.of || '') !== name;
  document.body.classList.toggle('open', !!name && open);
  close.hidden = !kept;
}
function keep(name) {
  kept = byName.has(name) ? name : '';
  state.write('family', kept);
  show(kept);
  panel.scrollTop = 0;
}
for (const link of links) {
  const name = link.dataset.name;
  link.addEventListener('pointerenter', event => {
    if (event.pointerType === 'mouse' && !kept) show(name, beside());
  });
  link.addEventListener('pointerleave', event => {
    if (event.pointerType === 'mouse' && !kept) show('');
  });
  link.addEventListener('focus', () => { if (link.matches(':focus-visible')) show(name); });
  link.addEventListener('blur', () => show(kept));
}
document.addEventListener('click', event => {
  const link = event.target.closest('a[href^="#family="]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const name = new URLSearchParams(link.hash.slice(1)).get('family');
  keep(name);
  if (event.detail === 0 || panel.contains(link)) close.focus({ preventScroll: true });
  if (panel.contains(link)) byName.get(name)?.scrollIntoView({ block: 'nearest' });
});
close.addEventListener('click', () => {
  const link = byName.get(kept);
  keep('');
  link.focus({ preventScroll: true });
  show('');
});

// ---- keys: up and down the rows, left to the parent, right to the first child
document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const here = document.activeElement;
  if (event.key === 'Escape') {
    if (here === search) { search.value = ''; find(); } else if (kept) close.click(); else show('');
  } else if (event.key === '/' && here !== search) {
    event.preventDefault();
    search.focus();
  } else if (here === search && event.key === 'Enter') {
    const named = byName.get(search.value.trim().toLowerCase());
    (named || links.find(link => !search.value || link.classList.contains('hit')))?.focus();
  } else if (links.includes(here)) {
    const i = links.indexOf(here), next = links[i + 1];
    const to = {
      ArrowDown: next, ArrowUp: links[i - 1], Home: links[0], End: links[links.length - 1],
      ArrowLeft: byName.get(here.dataset.parent),
      ArrowRight: next && next.dataset.parent === here.dataset.name ? next : null,
    }[event.key];
    if (to) { event.preventDefault(); to.focus(); }
  }
});

// ---- search: every word must be found; the exact word `encoder` or `decoder` means that structure alone
const structures = keys.map(key => key.dataset.structure);
function find() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let hits = 0;
  for (const link of links) {
    const text = link.dataset.find, structure = text.split(' ', 1)[0];
    const hit = words.every(word => structures.includes(word) ? structure === word : text.includes(word));
    link.classList.toggle('hit', hit && words.length > 0);
    hits += hit;
  }
  document.body.classList.toggle('searching', words.length > 0);
  found.textContent = words.length ? `${hits} of ${links.length}` : '';
  for (const key of keys) key.setAttribute('aria-pressed', String(words.includes(key.dataset.structure)));
  state.write('search', search.value.trim());
}
search.addEventListener('input', find);
for (const key of keys) {
  key.addEventListener('click', () => {
    const words = search.value.split(/\s+/).filter(Boolean), it = key.dataset.structure;
    const others = words.filter(word => !structures.includes(word));
    search.value = [...(words.includes(it) ? [] : [it]), ...others].join(' ');
    find();
  });
}

// ---- what the address says
function apply() {
  const asked = state.read();
  if ((asked.get('search') || '') !== search.value.trim()) search.value = asked.get('search') || '';
  find();
  const name = asked.get('family') || '';
  if (name !== kept) {
    keep(name);
    const link = byName.get(kept), box = link?.getBoundingClientRect();
    if (link && !beside()) link.scrollIntoView({ block: 'start', behavior: 'instant' });  // above the sheet
    else if (link && (box.top < 0 || box.bottom > innerHeight)) link.scrollIntoView({ block: 'center', behavior: 'instant' });
  }
}
apply();
addEventListener('hashchange', apply);
