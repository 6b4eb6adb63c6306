/* Before anything is drawn, so that a chosen theme does not flash. Not a module: those run later. */
try {
  const chosen = localStorage.getItem("stillhouse.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {
  // Without storage the page follows the system.
}
