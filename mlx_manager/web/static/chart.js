// Curves over time with uPlot, in the colours of the theme. The table below a chart has its figures as text.
/* global uPlot */

const DIGITS = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3 });

const seconds = (value) => {
  if (value < 1) return `${DIGITS.format(value * 1000)} ms`;
  return `${DIGITS.format(value)} s`;
};

class TimeChart extends HTMLElement {
  #plot = null;
  #redraw = () => this.#draw();

  connectedCallback() {
    document.addEventListener("themechange", this.#redraw);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.scheme.addEventListener("change", this.#redraw);
    this.observer = new ResizeObserver(() => this.#plot?.setSize(this.#size()));
    this.#draw();
    this.observer.observe(this);
  }

  disconnectedCallback() {
    document.removeEventListener("themechange", this.#redraw);
    this.scheme.removeEventListener("change", this.#redraw);
    this.observer.disconnect();
    this.#plot?.destroy();
  }

  #size() {
    return { width: Math.max(120, this.clientWidth), height: 180 };
  }

  #say(value) {
    if (value == null) return "–";
    return this.dataset.unit === "s" ? seconds(value) : `${DIGITS.format(value)} ${this.dataset.unit}`;
  }

  #draw() {
    this.#plot?.destroy();
    const style = getComputedStyle(this);
    const colour = (name) => style.getPropertyValue(name).trim();
    const [first, second] = "bars" in this.dataset ? ["--accent", "--bad"] : ["--accent", "--second"];
    const columns = JSON.parse(this.dataset.columns);
    const bars = "bars" in this.dataset ? { paths: uPlot.paths.bars({ size: [0.7, 24], radius: 0.2 }) } : {};
    const axis = { stroke: colour("--quiet"), font: "11px Inter, sans-serif", grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    this.setAttribute("role", "img");
    this.setAttribute("aria-label", `${this.dataset.title} over time, in ${this.dataset.unit}`);
    this.#plot = new uPlot(
      {
        ...this.#size(),
        cursor: { y: false, points: { size: 6 } },
        legend: { live: true },
        scales: { x: { time: true, range: () => [Number(this.dataset.since), Number(this.dataset.until)] }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
        axes: [
          { ...axis, grid: { show: false }, space: 70 },
          { ...axis, size: 64, space: 32, values: (_, marks) => marks.map((mark) => (this.dataset.unit === "s" ? seconds(mark) : DIGITS.format(mark))) },
        ],
        series: [
          { label: "Time", value: (_, at) => (at == null ? "–" : new Date(at * 1000).toLocaleTimeString()) },
          ...JSON.parse(this.dataset.curves).map((label, index) => ({
            label,
            stroke: colour(index ? second : first),
            fill: "bars" in this.dataset ? colour(index ? second : first) : undefined,
            width: 1.5,
            points: { size: 4 },
            spanGaps: false,
            value: (_, value) => this.#say(value),
            ...bars,
          })),
        ],
      },
      columns,
      this,
    );
  }
}

customElements.define("time-chart", TimeChart);
