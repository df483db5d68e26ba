// Curves over time with uPlot, in the colours of the theme. The table below a chart has its figures as text.
/* global uPlot */

const DIGITS = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3 });

const seconds = (value) => {
  if (value < 1) return `${DIGITS.format(value * 1000)} ms`;
  return `${DIGITS.format(value)} s`;
};

// Steps of an axis that has whole things only: no half of a byte, a request or a token.
const WHOLE = [1, 2, 5].flatMap((digit) => Array.from({ length: 12 }, (_, zeros) => digit * 10 ** zeros)).sort((a, b) => a - b);
const POWERS = Array.from({ length: 50 }, (_, power) => 2 ** power);
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const bytes = (value) => {
  const at = value < 1 ? 0 : Math.min(Math.floor(Math.log2(value) / 10), UNITS.length - 1);
  return `${DIGITS.format(value / 1024 ** at)} ${UNITS[at]}`;
};

// Points only where there is no line to see: a value between two holes.
const alone = (plot, series) => {
  const values = plot.data[series];
  return [...values.keys()].filter((at) => values[at] != null && values[at - 1] == null && values[at + 1] == null);
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

  // Local time; with the day where the chart is longer than one.
  #when(at) {
    const isLong = this.dataset.until - this.dataset.since > 86400;
    const day = isLong ? { day: "numeric", month: "short" } : {};
    return new Date(at * 1000).toLocaleString("en-GB", { ...day, hour: "2-digit", minute: "2-digit" });
  }

  #say(value) {
    if (value == null) return "–";
    return "s bytes".split(" ").includes(this.dataset.unit) ? this.#mark(value) : `${DIGITS.format(value)} ${this.dataset.unit}`;
  }

  // A number of the axis: the unit stands above the chart, unless it changes with the number.
  #mark(value) {
    if (this.dataset.unit === "s") return seconds(value);
    return this.dataset.unit === "bytes" ? bytes(value) : DIGITS.format(value);
  }

  #steps() {
    const incrs = { bytes: POWERS, requests: WHOLE }[this.dataset.unit];
    return incrs ? { incrs } : {};
  }

  #draw() {
    this.#plot?.destroy();
    const style = getComputedStyle(this);
    const colour = (name) => style.getPropertyValue(name).trim();
    const colours = "bars" in this.dataset ? ["--accent", "--bad"] : ["--accent", "--second", "--k-load", "--k-queue"];
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
          { ...axis, grid: { show: false }, space: 60, size: 28, values: (_, marks) => marks.map((mark) => this.#when(mark)) },
          { ...axis, size: 64, space: 32, ...this.#steps(), values: (_, marks) => marks.map((mark) => this.#mark(mark)) },
        ],
        series: [
          { label: "Time", value: (_, at) => (at == null ? "–" : this.#when(at)) },
          ...JSON.parse(this.dataset.curves).map((label, index) => ({
            label,
            stroke: colour(colours[index]),
            fill: "bars" in this.dataset ? colour(colours[index]) : undefined,
            width: "bars" in this.dataset ? 0 : 1.5,
            points: { show: !("bars" in this.dataset), size: 5, fill: colour(colours[index]), filter: alone },
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
