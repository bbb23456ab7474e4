// Sorting and filtering without a new page. Without this script the same links and the same form
// load the page anew, and the server sorts: there is one sorting, and the address says which.
"use strict";

(() => {
  const form = document.getElementById("filters");
  if (!form || !window.fetch || !window.DOMParser) return;
  let pending = null;

  // Addresses leave out what is empty, as the server's own links do.
  const address = () => {
    const given = new URLSearchParams(new FormData(document.getElementById("filters")));
    const asked = new URLSearchParams();
    for (const [name, value] of given) if (value) asked.append(name, value);
    const query = asked.toString();
    return location.pathname + (query ? `?${query}` : "");
  };

  // Replaces the given parts of the page by those of the page at url.
  const show = async (url, parts) => {
    pending?.abort();
    pending = new AbortController();
    const board = document.getElementById("board");
    board.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(url, { signal: pending.signal });
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const focused = document.activeElement?.id;
      const scrolled = document.querySelector("#board .scroll")?.scrollLeft ?? 0;
      const open = document.getElementById("filter-tasks")?.open;
      for (const id of parts) {
        document.getElementById(id).replaceWith(document.adoptNode(page.getElementById(id)));
      }
      const details = document.getElementById("filter-tasks");
      if (details && open) details.open = true;
      const box = document.querySelector("#board .scroll");
      if (box) box.scrollLeft = scrolled;
      if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
      history.pushState(null, "", url);
    } catch (error) {
      if (error.name !== "AbortError") location.assign(url);
    }
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a.sort");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    show(link.href, ["board", "filters"]);
  });

  document.addEventListener("submit", (event) => {
    if (event.target.id !== "filters") return;
    event.preventDefault();
    show(address(), ["board", "filters"]);
  });

  document.addEventListener("change", (event) => {
    if (!event.target.closest("#filters") || event.target.type === "search") return;
    show(address(), ["board", "filters"]);
  });

  // The field that is typed in stays; only the table is replaced.
  let typing = 0;
  document.addEventListener("input", (event) => {
    if (event.target.id !== "filter-q") return;
    clearTimeout(typing);
    typing = setTimeout(() => show(address(), ["board"]), 200);
  });

  addEventListener("popstate", () => location.reload());
  document.documentElement.classList.add("js");
})();
