// What a page owes to eyes, keyboards and screen readers, as far as a script can tell: lists of complaints, empty when all is well.
(() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", { willReadFrequently: true });

  // Red, green, blue and alpha, 0 to 1, of any colour that CSS can say.
  const parsed = new Map();
  const colour = (text) => {
    if (!parsed.has(text)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = text;
      pen.fillRect(0, 0, 1, 1);
      parsed.set(text, [...pen.getImageData(0, 0, 1, 1).data].map((part) => part / 255));
    }
    return parsed.get(text);
  };
  const over = (top, below, alpha) => top.slice(0, 3).map((part, at) => part * alpha + below[at] * (1 - alpha));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  const ancestors = (element) => (element ? [element, ...ancestors(element.parentElement)] : []);
  const ground = (element) =>
    ancestors(element)
      .reverse()
      .reduce((below, one) => {
        const own = colour(getComputedStyle(one).backgroundColor);
        return over(own, below, own[3]);
      }, [1, 1, 1]);
  const isSeen = (element) => element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && !element.closest(".sr, .skip, noscript");
  const named = (element) => {
    const text = (element.innerText ?? element.textContent).trim().replace(/\s+/g, " ").slice(0, 40);
    return `<${element.tagName.toLowerCase()}${element.id ? ` id=${element.id}` : ""}${element.getAttribute("class") ? ` class=${element.getAttribute("class")}` : ""}> ${text}`;
  };

  const contrastOf = (element, style, what) => {
    const below = ground(element);
    const ink = colour(element.closest("svg") ? style.fill : style.color);
    const opacity = ancestors(element).reduce((all, one) => all * Number(getComputedStyle(one).opacity), 1);
    const found = ratio(over(ink, below, ink[3] * opacity), below);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    return found >= (isLarge ? 3 : 4.5) ? [] : [`contrast ${found.toFixed(2)} of ${what}: ${named(element)}`];
  };
  const contrast = () => {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const element = node.parentElement;
      if (!node.textContent.trim() || !isSeen(element) || element.closest(":disabled, script, style, option")) continue;
      found.push(...contrastOf(element, getComputedStyle(element), "text"));
    }
    for (const field of document.querySelectorAll("input[placeholder]")) found.push(...contrastOf(field, getComputedStyle(field, "::placeholder"), "placeholder"));
    return [...new Set(found)];
  };

  const byId = (ids) => (ids ?? "").split(/\s+/).filter(Boolean).map((id) => document.getElementById(id));
  const nameOf = (element) =>
    [
      element.getAttribute("aria-label"),
      ...byId(element.getAttribute("aria-labelledby")).map((one) => one?.textContent),
      ...[...(element.labels ?? [])].map((one) => one.textContent),
      /^(A|BUTTON|SUMMARY|TH)$/.test(element.tagName) ? element.textContent : "",
      element.getAttribute("alt"),
      element.getAttribute("title"),
    ]
      .map((text) => (text ?? "").trim())
      .find(Boolean);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const names = () => {
    const found = [];
    const complain = (elements, what) => found.push(...elements.map((one) => `${what}: ${named(one)}`));
    complain(all("a[href], button, input:not([type=hidden]), select, textarea, summary, [role=img], [role=region], [role=treegrid], table, nav, form").filter((one) => !nameOf(one) && !one.parentElement.closest("[role=img]")), "no name");
    complain(all(":is(span, div, p, pre, code):is([aria-label], [aria-labelledby]):not([role])"), "named, but nothing that has a name");
    complain(all("img:not([alt])"), "no alternative");
    complain(all("section").filter((one) => !nameOf(one)), "section without a name");
    complain(all("svg").filter((one) => !one.closest("[aria-hidden=true], [role=img], time-chart")), "picture that is neither named nor hidden");
    complain(all("[tabindex]").filter((one) => one.tabIndex > 0), "order of its own");
    complain(all("[aria-hidden=true] :is(a[href], button, input, select, [tabindex])"), "hidden, but can be focused");
    complain(all(":is(a, button) :is(a, button)"), "control in a control");
    complain(all("th").filter((one) => !one.scope && !one.closest(".u-legend")), "heading of nothing");
    for (const attribute of ["aria-labelledby", "aria-describedby", "aria-controls", "for"]) complain(all(`[${attribute}]`).filter((one) => byId(one.getAttribute(attribute)).includes(null)), `${attribute} leads nowhere`);
    const ids = all("[id]").map((one) => one.id);
    found.push(...new Set(ids.filter((id, at) => ids.indexOf(id) !== at)), ...landmarks());
    return found;
  };
  const landmarks = () => {
    const found = [];
    const once = { "main": "main", "body > header": "banner", "nav[aria-label=Main]": "navigation", h1: "main heading", "a.skip[href='#main']": "skip link" };
    for (const [selector, word] of Object.entries(once)) if (all(selector).length !== 1) found.push(`${all(selector).length} times ${word}`);
    if (!document.documentElement.lang) found.push("no language");
    if (!document.title.endsWith("MLX Manager")) found.push("no title");
    const levels = all("h1, h2, h3, h4").map((one) => Number(one.tagName[1]));
    if (levels.some((level, at) => level > (levels[at - 1] ?? 0) + 1)) found.push(`headings jump: ${levels}`);
    const navs = all("nav").map(nameOf);
    if (new Set(navs).size !== navs.length) found.push(`navigations of one name: ${navs}`);
    return found;
  };

  // Everything that Tab should reach, in the order in which it stands in the page; of a group of radio buttons, one.
  const tabbable = () => {
    const groups = new Set();
    return all("a[href], button, input, select, textarea, summary, [tabindex]").filter((one) => {
      if (one.tabIndex < 0 || one.disabled || !one.checkVisibility({ checkVisibilityCSS: true })) return false;
      if (one.type !== "radio") return true;
      const checked = document.querySelector(`input[name="${one.name}"]:checked`);
      return one === (checked ?? one) && !groups.has(one.name) && groups.add(one.name);
    });
  };
  const look = (element) =>
    [element, element.parentElement, element.nextElementSibling]
      .filter(Boolean)
      .flatMap((one) => [getComputedStyle(one), getComputedStyle(one, "::after")])
      .map((style) => [style.outlineStyle, style.outlineWidth, style.boxShadow, style.borderColor].join())
      .join("|");
  // What has the focus: its place in the order, and whether one sees that it has it.
  const focused = () => {
    const element = document.activeElement;
    if (element === document.body) return null;
    const place = tabbable().indexOf(element);
    const lit = look(element);
    element.blur();
    const isLit = lit !== look(element);
    element.focus({ focusVisible: true });
    const box = element.getBoundingClientRect();
    return { place, isLit, isThere: box.width > 0 && box.bottom > 0 && box.top < innerHeight, what: named(element) };
  };

  window.accessibility = { contrast, names, focused, count: () => tabbable().length };
})();
