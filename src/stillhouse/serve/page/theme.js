/* Runs before the first paint, so that the wrong theme does not flash. Not a module, because modules run later. */
try {
  const chosen = localStorage.getItem("stillhouse.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {
  // Without storage the page follows the system.
}
