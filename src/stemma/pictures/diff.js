// Pointing at a box marks its lines in the list, and the other way round.
const marked = [...document.querySelectorAll('[data-paths]')], rows = [...document.querySelectorAll('tr[data-path]')];
const touches = (change, path) => change === path || change.startsWith(path + '.') || path.startsWith(change + '.');
const fits = (item, row) => item.dataset.paths.split(' ').some(path => path && touches(row.dataset.path, path));
for (const item of marked) {
  for (const [type, on] of [['pointerenter', true], ['pointerleave', false]]) {
    item.addEventListener(type, () => rows.forEach(row => row.classList.toggle('point', on && fits(item, row))));
  }
}
for (const row of rows) {
  for (const [type, on] of [['pointerenter', true], ['pointerleave', false]]) {
    row.addEventListener(type, () => marked.forEach(item => item.classList.toggle('point', on && fits(item, row))));
  }
}
