// Builds elements. Text is only ever a text node, so that nothing a caller or a model wrote becomes markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Replace what a node holds. */
export function show(node, ...children) {
  node.replaceChildren(...nodes(children));
}

/** Return a table that scrolls sideways by itself; cells are texts, nodes or null. */
export function table(caption, heads, rows, { text = [0] } = {}) {
  const kind = (i) => (text.includes(i) ? { class: "text" } : {});
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": `Table: ${caption}` },
    el(
      "table",
      {},
      el("caption", { class: "visually-hidden" }, caption),
      el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", ...kind(i) }, head)))),
      el("tbody", {}, rows.map(({ cells, ...attributes }) => el("tr", attributes, cells.map((cell, i) =>
        i === 0 ? el("th", { scope: "row", ...kind(i) }, cell) : el("td", kind(i), cell))))),
    ),
  );
}

/** Return a bar of parts; `parts`: {share: 0 to 1, class}. What it says must be said in text beside it. */
export function bar(parts) {
  let x = 0;
  const rects = parts.map(({ share, class: name }) => {
    const rect = svg("rect", { x: 100 * x, y: 0, width: Math.max(0, 100 * share), height: 10, class: name });
    x += share;
    return rect;
  });
  return svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, rects);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...nodes(children));
  return node;
}

function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : document.createTextNode(String(child))));
}
