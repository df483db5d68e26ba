// The form of the request timeouts, over the API that scripts and the terminal use too.

class TimeoutsForm extends HTMLElement {
  connectedCallback() {
    this.form = this.querySelector("form");
    this.said = this.querySelector("output");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#save();
    });
    this.#load();
  }

  async #load() {
    const limits = await this.#ask("GET");
    if (limits) this.#fill(limits);
  }

  async #save() {
    const limits = Object.fromEntries(this.#inputs().map((input) => [input.name, input.value === "" ? null : Number(input.value)]));
    const saved = await this.#ask("PUT", limits);
    if (!saved) return;
    this.#fill(saved);
    this.#say("Saved.", "good");
  }

  #inputs() {
    return [...this.form.querySelectorAll("input")];
  }

  #fill(limits) {
    for (const input of this.#inputs()) {
      input.disabled = !(input.name in limits);
      if (input.name in limits) input.value = limits[input.name];
    }
    this.form.querySelector("button").disabled = false;
  }

  async #ask(method, body) {
    this.#say("");
    for (const input of this.#inputs()) input.removeAttribute("aria-invalid");
    try {
      const answer = await fetch(this.dataset.url, {
        method,
        headers: body ? { "Content-Type": "application/json" } : {},
        body: body && JSON.stringify(body),
      });
      const content = await answer.json();
      if (answer.ok) return content;
      this.#say(content.detail ?? `The server answered ${answer.status}.`, "bad");
      this.#inputs().find((input) => input.name === content.param)?.setAttribute("aria-invalid", "true");
    } catch {
      this.#say("The server can’t be reached. Nothing was changed.", "bad");
    }
    return null;
  }

  #say(text, kind = "") {
    this.said.textContent = text;
    this.said.className = `said ${kind}`;
  }
}

customElements.define("timeouts-form", TimeoutsForm);
