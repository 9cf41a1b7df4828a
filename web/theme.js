// theme.js -- applies the chosen colour theme before the first paint. A classic script on purpose: it must run before the body.
(() => {
  let stored = null;
  try {
    stored = localStorage.getItem('weir-theme');
  } catch {
    // Storage may be forbidden; the system's preference serves then.
  }
  if (stored === 'light' || stored === 'dark') document.documentElement.dataset.theme = stored;
})();
