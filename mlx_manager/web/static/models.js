// The models on the first page: what they are doing now, and buttons that load, unload and pin them.

const say = (text) => (document.querySelector("#models-said").textContent = text);

class ModelControl extends HTMLElement {
  #now = null;
  #isBusy = false;
  #buttons = document.createElement("span");
  #listen = (event) => {
    const now = event.detail.models.find((model) => model.id === this.dataset.model);
    if (JSON.stringify(now) === JSON.stringify(this.#now ?? undefined)) return;
    this.#now = now ?? null;
    this.#show();
  };

  connectedCallback() {
    this.#buttons.className = "buttons";
    this.append(this.#buttons);
    this.#show();
    document.addEventListener("live-snapshot", this.#listen);
  }

  disconnectedCallback() {
    document.removeEventListener("live-snapshot", this.#listen);
  }

  // What the server wrote stands until there is news.
  #show() {
    const now = this.#now;
    const state = this.querySelector(".state");
    if (now) {
      const words = [now.state === "loading" && now.loaded_share !== null ? `loading ${Math.round(100 * now.loaded_share)} %` : now.state];
      if (now.active) words.push(`${now.active} active`);
      if (now.is_pinned) words.push("pinned");
      state.textContent = words.join(" · ");
      state.className = `state ${now.state}`;
    } else if (document.querySelector("live-status button")?.dataset.state === "live" && !state.classList.contains("on-disk")) {
      state.textContent = "on disk";
      state.className = "state on-disk";
    }
    const isLoaded = !state.classList.contains("on-disk");
    this.#offer(isLoaded ? { unload: "Unload", [now?.is_pinned ? "unpin" : "pin"]: now?.is_pinned ? "Unpin" : "Pin" } : { load: "Load" });
  }

  #offer(actions) {
    const buttons = Object.entries(actions).map(([action, word]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "button";
      button.textContent = word;
      button.disabled = this.#isBusy;
      button.setAttribute("aria-label", `${word} ${this.dataset.model}`);
      button.addEventListener("click", () => this.#do(action));
      return button;
    });
    const hadFocus = this.#buttons.contains(document.activeElement);
    this.#buttons.replaceChildren(...buttons);
    if (hadFocus) buttons[0].focus();
  }

  async #do(action) {
    this.#isBusy = true;
    this.#show();
    say("");
    try {
      const answer = await fetch(`/admin/models/${action}`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ model: this.dataset.model }),
      });
      if (!answer.ok) say((await answer.json()).detail ?? `The server answered ${answer.status}.`);
    } catch {
      say("The server can’t be reached. Nothing was changed.");
    }
    this.#isBusy = false;
    this.#show();
  }
}

customElements.define("model-control", ModelControl);
