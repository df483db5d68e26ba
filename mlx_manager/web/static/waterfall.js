// The waterfall by mouse and keyboard: rows are a tree grid, the chosen span's details are the URL's fragment.

class TraceWaterfall extends HTMLElement {
  connectedCallback() {
    this.rows = [...this.querySelectorAll("tbody tr")];
    this.addEventListener("click", (event) => this.#click(event));
    this.querySelector("tbody").addEventListener("keydown", (event) => this.#key(event));
    addEventListener("hashchange", () => this.#show());
    this.#show();
  }

  #click(event) {
    const row = event.target.closest("tbody tr");
    if (!row) return;
    event.preventDefault();
    this.#focus(row);
    this.#select(row);
  }

  #key(event) {
    const row = event.target.closest("tr");
    const shown = this.rows.filter((one) => !one.hidden);
    const at = shown.indexOf(row);
    const moves = {
      ArrowDown: () => this.#focus(shown[at + 1]),
      ArrowUp: () => this.#focus(shown[at - 1]),
      Home: () => this.#focus(shown[0]),
      End: () => this.#focus(shown.at(-1)),
      PageDown: () => this.#focus(shown[Math.min(at + 10, shown.length - 1)]),
      PageUp: () => this.#focus(shown[Math.max(at - 10, 0)]),
      Enter: () => this.#select(row),
      " ": () => this.#select(row),
      ArrowLeft: () => (row.ariaExpanded === "true" ? this.#fold(row, true) : this.#focus(this.#parent(row))),
      ArrowRight: () => (row.ariaExpanded === "false" ? this.#fold(row, false) : this.#focus(shown[at + 1])),
    };
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    moves[event.key]();
  }

  #level(row) {
    return Number(row.ariaLevel);
  }

  #parent(row) {
    let at = this.rows.indexOf(row) - 1;
    while (at >= 0 && this.#level(this.rows[at]) >= this.#level(row)) at -= 1;
    return this.rows[at];
  }

  #fold(row, isFolded) {
    row.ariaExpanded = String(!isFolded);
    let hiddenBelow = isFolded ? this.#level(row) : Infinity;
    for (const one of this.rows.slice(this.rows.indexOf(row) + 1)) {
      if (this.#level(one) <= this.#level(row)) break;
      if (this.#level(one) <= hiddenBelow) hiddenBelow = Infinity;
      one.hidden = this.#level(one) > hiddenBelow;
      // What was folded inside stays folded.
      if (!one.hidden && one.ariaExpanded === "false") hiddenBelow = this.#level(one);
    }
  }

  #focus(row) {
    if (!row) return;
    for (const one of this.rows) one.tabIndex = one === row ? 0 : -1;
    row.focus({ preventScroll: false });
  }

  // Replaced, not assigned: looking at ten spans must not take ten steps back.
  #select(row) {
    location.replace(`#span-${row.dataset.span}`);
    // The browser moves the focus to the fragment; who walks the rows stays among them.
    row.focus({ preventScroll: true });
  }

  #show() {
    const id = location.hash.replace("#span-", "");
    const chosen = this.rows.find((row) => row.dataset.span === id);
    for (const row of this.rows) row.ariaSelected = String(row === chosen);
    this.classList.toggle("chosen", Boolean(chosen));
    if (!chosen) return;
    for (let row = chosen; row; row = this.#parent(row)) if (row !== chosen && row.ariaExpanded === "false") this.#fold(row, false);
    for (const one of this.rows) one.tabIndex = one === chosen ? 0 : -1;
  }
}

customElements.define("trace-waterfall", TraceWaterfall);
