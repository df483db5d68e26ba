// Runs before anything is painted, so a chosen theme never flashes. Not a module on purpose: those wait.
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  try {
    const chosen = localStorage.getItem("theme");
    if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  } catch {
    // Storage is blocked; the system's theme it is.
  }
})();
