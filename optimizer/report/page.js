// Hover, legend and filters of a study's page. Without it the charts still show; it draws nothing.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const tip = document.getElementById("tip");

// A mark tells its values, and every other mark of the same trial lights up.
function tell(mark, x, y) {
  tip.textContent = mark.dataset.tip;
  tip.style.display = "block";
  tip.style.left = `${Math.min(x + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(y + 14, window.innerHeight - tip.offsetHeight - 8)}px`;
}
function light(mark, on) {
  const trial = mark.dataset.trial;
  const same = trial === undefined ? [mark] : all(`[data-trial="${trial}"]`);
  same.forEach((one) => one.classList.toggle("lit", on));
  if (!on) tip.style.display = "none";
}
all("[data-tip]").forEach((mark) => {
  mark.addEventListener("pointermove", (event) => tell(mark, event.clientX, event.clientY));
  mark.addEventListener("pointerenter", () => light(mark, true));
  mark.addEventListener("pointerleave", () => light(mark, false));
  mark.addEventListener("focus", () => {
    const box = mark.getBoundingClientRect();
    tell(mark, box.right, box.bottom);
    light(mark, true);
  });
  mark.addEventListener("blur", () => light(mark, false));
});

// A legend's button hides what is of its kind in its own section.
all(".legend button").forEach((button) => {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    all(`[data-kind="${button.dataset.of}"]`, button.closest("section")).forEach((mark) =>
      mark.classList.toggle("off", !shown));
  });
});

// Dragging on an axis keeps the trials that pass there, in every chart; a click lets all through.
const kept = new Map(); // axis -> [top, bottom] in the chart's units
function filter() {
  all(".thread").forEach((thread) => {
    const at = thread.dataset.at.split(",");
    const inside = [...kept].every(([axis, [top, bottom]]) =>
      at[axis] !== "" && at[axis] >= top && at[axis] <= bottom);
    all(`[data-trial="${thread.dataset.trial}"]`).forEach((mark) =>
      mark.classList.toggle("out", !inside));
  });
}
all("[data-axis]").forEach((axis) => {
  const grip = axis.querySelector(".grip");
  const brush = axis.querySelector(".brush");
  const height = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY);
    return point.matrixTransform(grip.getScreenCTM().inverse()).y;
  };
  let from = null;
  grip.addEventListener("pointerdown", (event) => {
    from = height(event);
    grip.setPointerCapture(event.pointerId);
  });
  grip.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const range = [from, height(event)].sort((a, b) => a - b);
    brush.setAttribute("y", range[0]);
    brush.setAttribute("height", range[1] - range[0]);
    kept.set(Number(axis.dataset.axis), range);
    filter();
  });
  grip.addEventListener("pointerup", (event) => {
    if (Math.abs(height(event) - from) < 3) {
      kept.delete(Number(axis.dataset.axis));
      brush.setAttribute("height", 0);
      filter();
    }
    from = null;
  });
});
