// Charts as SVG. Each is an image with a short description; a table beside it has the numbers.

import { svg } from "./dom.js";

const TICKS = [1, 2, 5];

/** Return plans by latency (log) and certified F1. `points`: {name, x, y, kind, label}. */
export function scatter({ title, points, latencyMs, floor, xLabel, front = [], width = 640, height = 320 }) {
  const area = { left: 48, right: width - 16, top: 16, bottom: height - 40 };
  const xs = points.map((p) => p.x).filter((x) => x > 0);
  const shownLatency = latencyMs && latencyMs < 20 * Math.max(...xs) ? latencyMs : null;
  const low = Math.log10(Math.min(...xs, ...(shownLatency ? [shownLatency] : [])) * 0.8);
  const high = Math.log10(Math.max(...xs, ...(shownLatency ? [shownLatency] : [])) * 1.35);
  const ys = [...points.map((p) => p.y), ...(floor === undefined ? [] : [floor])];
  const bottom = Math.max(0, Math.floor(Math.min(...ys) * 20 - 0.3) / 20);
  const top = Math.min(1, Math.ceil(Math.max(...ys) * 20 + 0.3) / 20);
  const x = (ms) => area.left + ((Math.log10(ms) - low) / (high - low)) * (area.right - area.left);
  const y = (f1) => area.bottom - ((f1 - bottom) / (top - bottom || 1)) * (area.bottom - area.top);
  const parts = [];
  const meetsFrom = floor === undefined ? null : y(Math.min(top, Math.max(bottom, floor)));
  if (meetsFrom !== null) {
    parts.push(svg("rect", { class: "meets", x: area.left, y: area.top, width: (shownLatency ? x(shownLatency) : area.right) - area.left, height: Math.max(0, meetsFrom - area.top) }));
  }
  for (const ms of ticks(low, high)) {
    parts.push(svg("line", { class: "gridline", x1: x(ms), x2: x(ms), y1: area.top, y2: area.bottom }), text(x(ms), area.bottom + 16, number(ms), "middle"));
  }
  const step = top - bottom > 0.3 ? 0.1 : 0.05;
  for (let f1 = bottom; f1 <= top + 1e-9; f1 += step) {
    parts.push(svg("line", { class: "gridline", x1: area.left, x2: area.right, y1: y(f1), y2: y(f1) }), text(area.left - 6, y(f1) + 4, f1.toFixed(2), "end"));
  }
  if (shownLatency) parts.push(svg("line", { class: "limit", x1: x(shownLatency), x2: x(shownLatency), y1: area.top, y2: area.bottom }), text(x(shownLatency) - 4, area.bottom - 6, "target", "end"));
  if (meetsFrom !== null) parts.push(svg("line", { class: "limit", x1: area.left, x2: area.right, y1: meetsFrom, y2: meetsFrom }), text(area.right, meetsFrom - 5, "floor", "end"));
  parts.push(text((area.left + area.right) / 2, height - 6, xLabel, "middle"), text(4, 10, "certified F1", "start"));
  const steps = [...front].sort((a, b) => a.x - b.x).map((p, i) => (i ? `H${x(p.x).toFixed(1)}V${y(p.y).toFixed(1)}` : `M${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`));
  if (steps.length > 1) parts.push(svg("path", { class: "front", d: steps.join("") }));
  for (const point of points) {
    parts.push(svg("circle", { class: `point ${point.kind}`, cx: x(point.x), cy: y(point.y), r: point.kind === "chosen" ? 8 : 5.5 }, svg("title", {}, `${point.name}: ${number(point.x)} ms, F1 ${point.y.toFixed(3)}${point.label ? `; ${point.label}` : ""}`)));
  }
  for (const point of points.filter((p) => p.kind === "chosen")) {
    const left = x(point.x) > (area.left + area.right) / 2;
    parts.push(text(x(point.x), y(point.y) - 12, point.name, left ? "end" : "start", "label"));
  }
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, parts);
}

/** Return the last values of one series as a line; null: not known then. */
export function history({ title, values, width = 640, height = 90 }) {
  const most = Math.max(1, ...values.filter((value) => value !== null));
  const x = (i) => (values.length < 2 ? 0 : (i / (values.length - 1)) * width);
  const y = (value) => height - 6 - (value / most) * (height - 22);
  const parts = [];
  let path = "";
  let drawing = false;
  values.forEach((value, i) => {
    if (value !== null) path += `${drawing ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
    drawing = value !== null;
  });
  parts.push(svg("line", { class: "gridline", x1: 0, x2: width, y1: y(0), y2: y(0) }), svg("path", { class: "line", d: path || "M0 0" }), text(0, 12, `most: ${number(most)}/s`, "start"));
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, parts);
}

/** Return how wide a chart in this element should be: its text stays readable on a phone. */
export const widthIn = (element) => Math.min(760, Math.max(300, element.clientWidth));

/** Return a number as short as its size allows. */
export function number(value) {
  if (value >= 100) return value.toFixed(0);
  if (value >= 10) return value.toFixed(value % 1 ? 1 : 0);
  return String(Number(value.toPrecision(2)));
}

function ticks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= high; power += 1) {
    found.push(...TICKS.map((tick) => tick * 10 ** power).filter((ms) => Math.log10(ms) >= low && Math.log10(ms) <= high));
  }
  return found;
}

function text(x, y, content, anchor, name = "") {
  return svg("text", { x, y, "text-anchor": anchor, class: name || null }, content);
}
