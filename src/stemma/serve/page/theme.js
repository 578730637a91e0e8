// Light, dark, or as the system has it: before anything is drawn, so that no page flashes.
{
  const KEY = 'stemma.theme', root = document.documentElement;
  const read = () => { try { return localStorage.getItem(KEY) || ''; } catch { return ''; } };
  const dress = name => { if (name) root.dataset.theme = name; else delete root.dataset.theme; };
  dress(read());
  window.stemmaTheme = {
    now: read,
    next() {
      const order = ['', 'light', 'dark'], name = order[(order.indexOf(read()) + 1) % 3];
      try { localStorage.setItem(KEY, name); } catch { /* not kept */ }
      dress(name);
      return name;
    },
  };
  addEventListener('storage', event => { if (event.key === KEY) dress(event.newValue || ''); });
}
