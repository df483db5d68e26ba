// What every page has: theme, live updates, times that stay true, buttons that copy.

class ThemeSwitch extends HTMLElement {
  connectedCallback() {
    this.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.#choose(button.value);
    });
    this.#show();
  }

  #choose(theme) {
    const root = document.documentElement;
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    try {
      if (theme === "system") localStorage.removeItem("theme");
      else localStorage.setItem("theme", theme);
    } catch {
      // Storage is blocked: the choice holds for this page.
    }
    this.#show();
    document.dispatchEvent(new CustomEvent("themechange"));
  }

  #show() {
    const theme = document.documentElement.dataset.theme ?? "system";
    for (const button of this.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.value === theme));
  }
}

const gathered = (act, wait) => {
  let timer = null;
  return () => {
    timer ??= setTimeout(() => {
      timer = null;
      act();
    }, wait);
  };
};

// The one connection for live updates. It rests while the tab is hidden: browsers allow six a host.
class LiveStatus extends HTMLElement {
  #source = null;
  #seen = null;
  #isPaused = false;
  // The server has said that it stops: that its connection then ends is no surprise.
  #isStopped = false;
  // Charts are dear to draw, so the dashboard is told once for all that happens in five seconds, and never misses the last.
  #figures = gathered(() => document.body.dispatchEvent(new CustomEvent("live-figures")), 5000);

  connectedCallback() {
    this.querySelector("button").addEventListener("click", () => {
      this.#isPaused = !this.#isPaused;
      this.#follow();
    });
    document.addEventListener("visibilitychange", () => this.#follow());
    addEventListener("pagehide", () => this.#close());
    // A page out of the browser's own cache begins where it was left.
    addEventListener("pageshow", (event) => event.persisted && this.#follow());
    this.#follow();
  }

  #follow() {
    this.#close();
    if (this.#isPaused) return this.#say("paused", "Paused");
    if (document.hidden) return;
    this.#say("connecting", "Connecting");
    const source = (this.#source = new EventSource("/api/events"));
    source.addEventListener("snapshot", (event) => this.#take(JSON.parse(event.data)));
    source.addEventListener("end", () => {
      this.#isStopped = true;
      this.#say("down", "Server stopped");
    });
    source.addEventListener("error", () => {
      this.#say("down", this.#isStopped ? "Server stopped" : "Reconnecting");
      // A refusal closes the source for good; a lost connection it takes up again by itself.
      if (source.readyState === EventSource.CLOSED) setTimeout(() => source === this.#source && this.#follow(), 3000);
    });
  }

  #close() {
    this.#source?.close();
    this.#source = null;
  }

  #take(now) {
    this.#isStopped = false;
    this.#say(now.is_healthy ? "live" : "ill", now.is_healthy ? "Live" : "Engine down");
    const before = this.#seen;
    this.#seen = now;
    document.dispatchEvent(new CustomEvent("live-snapshot", { detail: now }));
    if (!before) return;
    if (before.newest_trace !== now.newest_trace) document.body.dispatchEvent(new CustomEvent("live-traces"));
    if (before.newest_request !== now.newest_request) {
      document.body.dispatchEvent(new CustomEvent("live-requests"));
      this.#figures();
    }
  }

  #say(state, word) {
    const button = this.querySelector("button");
    button.dataset.state = state;
    const text = button.querySelector(".word");
    // The region is read out on each change, so it is left alone when there is none.
    if (text.textContent !== word) text.textContent = word;
  }
}

class LiveModels extends HTMLElement {
  connectedCallback() {
    document.addEventListener("live-snapshot", (event) => this.#show(event.detail));
  }

  #show({ models, active }) {
    this.hidden = models.length === 0;
    const lines = models.map((model) => {
      const line = document.createElement("p");
      const name = document.createElement("strong");
      name.textContent = model.id;
      const state = document.createElement("span");
      state.textContent = model.state === "ready" ? (model.active ? `${model.active} active` : "idle") : model.state;
      state.className = `state ${model.state}`;
      line.append(name, state);
      return line;
    });
    const title = document.createElement("p");
    title.className = "hint";
    title.textContent = `In memory · ${active} in progress`;
    this.replaceChildren(title, ...lines);
  }
}

// As the server writes it: binary units, three digits or so.
const inBytes = (bytes) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = bytes;
  let at = 0;
  while (size >= 1000 && at < units.length - 1) [size, at] = [size / 1024, at + 1];
  return `${size.toFixed(at === 0 || size >= 99.5 ? 0 : size >= 9.95 ? 1 : 2)} ${units[at]}`;
};

class LiveNumber extends HTMLElement {
  #listen = (event) => {
    const value = event.detail[this.dataset.of];
    if (typeof value !== "number") return;
    this.textContent = this.dataset.unit === "bytes" ? inBytes(value) : value.toLocaleString("en-US");
  };
  connectedCallback() {
    document.addEventListener("live-snapshot", this.#listen);
  }
  disconnectedCallback() {
    document.removeEventListener("live-snapshot", this.#listen);
  }
}

class CopyButton extends HTMLElement {
  connectedCallback() {
    if (this.firstChild || !navigator.clipboard) return;
    this.hidden = false;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const text = this.dataset.text ?? this.parentElement.querySelector("pre").innerText;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Select and copy by hand";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    this.append(button);
  }
}

// "12 s ago", in the browser's own time zone on hover.
const relative = (seconds) => {
  if (seconds < 1) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
};

const showTimes = () => {
  for (const element of document.querySelectorAll("time[datetime]")) {
    const then = new Date(element.dateTime);
    if (!("absolute" in element.dataset)) element.textContent = relative((Date.now() - then) / 1000);
    element.title ||= "";
    if (!element.dataset.told) {
      if ("absolute" in element.dataset) element.textContent = then.toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
      element.title = then.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
      element.dataset.told = "yes";
    }
  }
};

customElements.define("theme-switch", ThemeSwitch);
customElements.define("live-status", LiveStatus);
customElements.define("live-models", LiveModels);
customElements.define("live-number", LiveNumber);
customElements.define("copy-button", CopyButton);

showTimes();
setInterval(() => document.hidden || showTimes(), 5000);
document.addEventListener("visibilitychange", () => document.hidden || showTimes());
document.addEventListener("htmx:afterSwap", showTimes);

// What a person has opened or scrolled to is there after the figures have changed, too.
const opened = new Map();
document.addEventListener("htmx:beforeSwap", ({ target }) => {
  for (const one of target.querySelectorAll("details[id]")) opened.set(one.id, one.open);
  for (const one of target.querySelectorAll(".scroll[id]")) opened.set(one.id, [one.scrollLeft, one.scrollTop]);
});
document.addEventListener("htmx:afterSwap", () => {
  for (const [id, was] of opened) {
    const one = document.getElementById(id);
    if (one instanceof HTMLDetailsElement) one.open = was;
    else if (one) [one.scrollLeft, one.scrollTop] = was;
  }
  opened.clear();
});

// A filter's address holds what was asked for, not every empty field.
document.addEventListener("htmx:configRequest", (event) => {
  const { parameters } = event.detail;
  for (const name of Object.keys(parameters)) if (parameters[name] === "") delete parameters[name];
});
// The form's button is for browsers without a script; enter must not load the page anew.
document.addEventListener("submit", (event) => event.target.matches("form[hx-get]") && event.preventDefault());
