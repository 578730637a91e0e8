// The hash is the page's state: #family=bert&search=rotary&theme=dark; a plain #section leaves it as it is
const state = {
  read: () => new URLSearchParams(location.hash.slice(1)),
  write(key, value) {
    const all = state.read();
    if (value) all.set(key, value); else all.delete(key);
    const text = all.toString().replaceAll('+', '%20');
    history.replaceState(null, '', text ? '#' + text : location.pathname + location.search);
  },
};
const themes = { '': 'as the system has them', light: 'light', dark: 'dark' };
function dress() {
  const plain = location.hash.length > 1 && !location.hash.includes('=');
  const asked = plain ? document.documentElement.dataset.theme : state.read().get('theme');
  const theme = asked in themes ? asked : '';
  if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
  const button = document.getElementById('theme');
  button.setAttribute('aria-label', 'Colours: ' + themes[theme]);
  button.textContent = { '': 'Theme: auto', light: 'Theme: light', dark: 'Theme: dark' }[theme];
}
document.getElementById('theme').addEventListener('click', () => {
  const order = Object.keys(themes), now = document.documentElement.dataset.theme || '';
  state.write('theme', order[(order.indexOf(now) + 1) % order.length]);
  dress();
});
dress();
addEventListener('hashchange', dress);
