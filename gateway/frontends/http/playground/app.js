// The playground: a question under an SLO, its answer, and why this plan gave it.

import { Gone, call, failure, key, showKey, unreachable } from "./api.js";
import { number, scatter, widthIn } from "./charts.js";
import { bar, byId, el, show, table } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { curl, python } from "./snippets.js";
import { REASONS, TRUST, VIOLATIONS, f1, inWords, ms, share } from "./words.js";

const LATENCIES = [2, 5000]; // ms, of the slider; logarithmic
const FORECAST_DELAY_MS = 300;
const BYTES_OF_A_CHARACTER = 4; // at most, in UTF-8
const COMPARED = [
  { name: "This one", headers: null },
  { name: "10 ms, any floor", headers: { "SLO-Latency-Ms": 10, "SLO-Min-F1": 0, "SLO-Policy": "prefer-latency" } },
  { name: "50 ms, the best floor if in time", headers: { "SLO-Latency-Ms": 50, "SLO-Policy": "prefer-latency" } },
  { name: "100 ms, the best floor", headers: { "SLO-Latency-Ms": 100, "SLO-Policy": "prefer-accuracy" } },
  { name: "5 s, the best floor", headers: { "SLO-Latency-Ms": 5000, "SLO-Policy": "prefer-accuracy" } },
];

let choices = { default_class: "standard", classes: {}, max_context_chars: Infinity };
let forecastTimer = 0;
let forecasts = 0;
let busy = false;

// What is asked.

const field = (id) => byId(id).value;
const latencyMs = () => {
  const ms = LATENCIES[0] * (LATENCIES[1] / LATENCIES[0]) ** Number(field("latency"));
  return Number(ms.toPrecision(2));
};
const ofClass = () => choices.classes[field("class") || choices.default_class];

function sloHeaders() {
  const headers = {};
  if (field("class")) headers["SLO-Class"] = field("class");
  if (byId("latency-own").checked) headers["SLO-Latency-Ms"] = latencyMs();
  if (byId("floor-own").checked) headers["SLO-Min-F1"] = Number(field("floor"));
  if (field("policy")) headers["SLO-Policy"] = field("policy");
  if (field("variant")) headers["SLO-Variant"] = field("variant");
  return headers;
}

function body() {
  const top = Math.max(1, Math.round(Number(field("top-k"))) || 1);
  return { question: field("question"), context: field("context"), ...(top > 1 ? { top_k: top } : {}) };
}

const ask = (headers) => call("v1/answer", { method: "POST", headers: { ...headers, "SLO-Explain": "1" }, body: body() });

// The form.

const POLICIES = {
  strict: "strict: refused if no plan meets the whole SLO",
  "prefer-latency": "prefer-latency: in time, if need be below the floor",
  "prefer-accuracy": "prefer-accuracy: at the floor, if need be late",
};

function describe() {
  const known = ofClass();
  const policy = field("policy") || known?.policy;
  show(byId("policy-help"), POLICIES[policy] ?? "");
  describeSlider("latency", `${number(latencyMs())} ms`, known && `the class's: ${number(known.latency_ms)} ms`);
  const floor = known && (known.min_f1 === null ? `the class's: the best floor less ${known.below_best}` : `the class's: ${known.min_f1}`);
  describeSlider("floor", Number(field("floor")).toFixed(3), floor);
  const [size, most] = [[...field("context")].length, choices.max_context_chars];
  show(byId("context-size"), `${size.toLocaleString("en")}${most < Infinity ? ` of ${most.toLocaleString("en")}` : ""} characters.`);
  show(byId("copy"), snippet("curl", curl(here(), sloHeaders(), body(), Boolean(key()))), snippet("Python", python(here(), sloHeaders(), body(), Boolean(key()))));
  clearTimeout(forecastTimer);
  forecastTimer = setTimeout(forecast, FORECAST_DELAY_MS);
}

function describeSlider(id, own, ofTheClass) {
  const sent = byId(`${id}-own`).checked;
  byId(`${id}-value`).value = sent ? own : (ofTheClass ?? "the class's");
  byId(id).setAttribute("aria-valuetext", own);
  byId(id).classList.toggle("unsent", !sent);
}

const here = () => new URL(".", document.baseURI).href.replace(/\/$/, "");

function snippet(name, text) {
  const done = el("span", { role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      show(done, "copied");
    } catch {
      getSelection().selectAllChildren(code);
      show(done, "selected: press Ctrl C");
    }
  };
  const code = el("pre", { tabindex: 0, "aria-label": `${name} for this request` }, text);
  return el("details", { open: byId(`copy-${name}`)?.open ?? false, id: `copy-${name}` }, el("summary", {}, name),
    code, el("button", { type: "button", onclick: copy }, `Copy ${name}`), " ", done);
}

/** Say which plan would answer now; nothing is inferred. */
async function forecast() {
  const mine = (forecasts += 1);
  const texts = field("question").trim() && field("context").trim() ? { question: field("question"), context: field("context") } : {};
  try {
    const reply = await call("v1/plan", { method: "POST", headers: sloHeaders(), body: texts, ask: false });
    if (mine !== forecasts) return;
    const data = reply.data;
    const chosen = reply.ok && data.options.find((option) => option.plan === data.plan);
    show(byId("forecast"), !reply.ok ? "" : data.plan === null ? ["Now: ", inWords(REASONS, data.reason), "."]
      : ["Now: ", el("strong", {}, data.plan), chosen ? `, ${ms(chosen.predicted_ms)} predicted, F1 ≥ ${f1(chosen.certified_f1)}` : "", data.violations.length ? [" (", data.violations.map((word) => inWords(VIOLATIONS, word)).join("; "), ")"] : "", "."]);
  } catch (error) {
    if (!(error instanceof Gone)) throw error;
    show(byId("forecast"), "");
  }
}

/** Put a text file in place of the context. A folder, or more than the gateway takes, changes nothing. */
async function readFile(file) {
  if (!file) return;
  const most = choices.max_context_chars;
  const text = file.size > BYTES_OF_A_CHARACTER * most ? null : await file.text().catch(() => null);
  if (text === null) {
    show(byId("status"), el("p", { class: "warn", role: "alert" }, `${file.name} cannot be used: it is not a file, or longer than ${most.toLocaleString("en")} characters.`));
    return;
  }
  byId("context").value = text.replaceAll("\0", "");
  byId("example").value = "";
  describe();
}

/** Take a file that is dropped anywhere on the page: the browser would leave the page to show it. */
function takeDroppedFiles() {
  const mark = (on) => byId("context").classList.toggle("dropping", on);
  const hasFiles = (event) => event.dataTransfer.types.includes("Files");
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      mark(true);
    });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && mark(false));
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(false);
    readFile(event.dataTransfer.files[0]);
  });
}

// The answer.

async function submit(event) {
  event.preventDefault();
  await whileBusy("Asking …", async () => {
    const asked = body();
    const reply = await ask(sloHeaders());
    if (!reply.ok) return refuse(reply);
    show(byId("answer"), answerParts(asked, reply));
    byId("result-title").focus();
    byId("answer").querySelector("mark")?.scrollIntoView({ block: "nearest" });
    byId("result").scrollIntoView({ block: "nearest" });
  });
}

async function whileBusy(text, work) {
  if (busy) return;
  busy = true;
  show(byId("status"), el("p", { class: "none" }, text));
  try {
    const problem = await work();
    show(byId("status"), problem ?? "");
  } catch (error) {
    if (!(error instanceof Gone)) throw error;
    show(byId("status"), unreachable());
  } finally {
    busy = false;
  }
}

function refuse(reply) {
  const nearest = reply.data?.nearest ?? [];
  return [failure(reply), nearest.length > 0 && el("div", {},
    el("h3", {}, "What an idle system could meet"),
    table("Nearest feasible SLOs", ["Plan", "Latency", "Certified F1", "Use it"], nearest.map((point) => ({
      cells: [point.plan, ms(point.idle_ms), f1(point.certified_f1), el("button", { type: "button", onclick: () => use(point) }, "Use")],
    }))))];
}

function use(point) {
  byId("latency-own").checked = byId("floor-own").checked = true;
  const wanted = Math.ceil(point.idle_ms * 1.25);
  byId("latency").value = Math.ceil(200 * Math.log(wanted / LATENCIES[0]) / Math.log(LATENCIES[1] / LATENCIES[0])) / 200;
  byId("floor").value = Math.floor(point.certified_f1 * 200) / 200;
  describe();
}

function answerParts(asked, reply) {
  const data = reply.data;
  return [
    el("p", { class: `found ${data.answer ? "" : "nothing"}` }, data.answer || "No answer in this context"),
    facts(data),
    el("h3", {}, "In the context"),
    el("div", { class: "context", tabindex: 0, role: "region", "aria-label": "Context with the answer marked" }, marked(asked.context, data)),
    data.alternatives.length > 0 && [el("h3", {}, "Alternatives"), alternatives(data.alternatives)],
    el("h3", {}, "Where the time went"),
    timing(reply.headers.get("server-timing"), reply.tookMs),
    data.explain && [el("h3", {}, "Why this plan"), explanation(data)],
  ];
}

function facts(data) {
  const met = data.slo.met === "true" ? el("span", { class: "good" }, "met") : el("span", { class: "bad" }, `not met: ${data.slo.met.split(",").map((word) => inWords(VIOLATIONS, word)).join("; ")}`);
  return el("dl", { class: "facts" }, [
    ["Score", [share(data.score), bar([{ share: data.score, class: "fill" }])]],
    ["No answer", [share(data.no_answer_probability), bar([{ share: data.no_answer_probability, class: "fill soft" }])]],
    ["SLO", [met, el("span", { class: "soft small" }, ` ${data.slo.class}, ${number(data.slo.latency_ms)} ms, F1 ≥ ${f1(data.slo.min_f1)}, ${data.slo.policy}`)]],
    ["Plan", data.plan],
    ["Variant", data.variant],
    ["Certified F1", f1(data.slo.certified_f1)],
    ["Predicted", ms(data.slo.predicted_ms)],
  ].map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/** Return the context with the answer marked; offsets count code points. */
function marked(context, { start, end }) {
  if (start === null) return [context];
  const points = Array.from(context);
  return [points.slice(0, start).join(""), el("mark", {}, points.slice(start, end).join("")), points.slice(end).join("")];
}

function alternatives(found) {
  return table("Alternatives", ["Answer", "Probability", "Offsets"], found.map((each) => ({
    cells: [each.answer || "no answer", [share(each.probability), bar([{ share: each.probability, class: "fill" }])], each.start === null ? "–" : `${each.start} to ${each.end}`],
  })));
}

/** Return the stages of Server-Timing as a bar and in a list. */
function timing(header, tookMs) {
  const stages = [...(header ?? "").matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, value]) => ({ name, ms: Number(value) }));
  const total = stages.find((stage) => stage.name === "total")?.ms ?? 0;
  const parts = stages.filter((stage) => stage.name !== "total");
  const rest = Math.max(0, total - parts.reduce((sum, stage) => sum + stage.ms, 0));
  const shown = [...parts, { name: "other", ms: rest }].map((stage, i) => ({ ...stage, class: `stage-${i}` }));
  return el("div", {},
    bar(shown.map((stage) => ({ share: total ? stage.ms / total : 0, class: stage.class }))),
    el("ul", { class: "legend" }, shown.map((stage) => el("li", {}, el("span", { class: `dot ${stage.class}` }), `${stage.name} ${ms(stage.ms)}`)), el("li", {}, el("strong", {}, `total ${ms(total)}`)), el("li", { class: "soft" }, `in this browser ${ms(tookMs)}`)));
}

function explanation(data) {
  const { explain, slo } = data;
  const options = [...explain.options].sort((a, b) => b.chosen - a.chosen || a.cost_ms - b.cost_ms);
  const points = options.map((option) => ({ name: option.plan, x: option.predicted_ms, y: option.certified_f1, kind: option.chosen ? "chosen" : against(option, options[0]).length ? "rejected" : "possible", label: reasonsOf(option, options[0]) }));
  const title = `Candidates by predicted latency and certified F1; ${data.plan} was chosen`;
  return [
    el("p", {}, `${data.plan}: ${inWords(REASONS, explain.reason)}.`),
    scatter({ title, points, latencyMs: slo.latency_ms - explain.spent_ms, floor: slo.min_f1, width: widthIn(byId("answer")), xLabel: `predicted latency, ms (P${Math.round(100 * explain.quantile)}, log scale)` }),
    el("ul", { class: "legend" }, [["chosen", "chosen"], ["possible", "would do as well, costs more"], ["rejected", "rejected"]].map(([kind, text]) => el("li", {}, el("span", { class: `dot ${kind}` }), text))),
    table("Candidates", ["Plan", "Decision", "Certified F1", "Predicted", "P50", "P99", "Cost", "Trust"], options.map((option) => ({
      class: option.chosen ? "chosen" : null,
      cells: [option.plan, reasonsOf(option, options[0]), f1(option.certified_f1), ms(option.predicted_ms), ms(option.p50_ms), ms(option.p99_ms), ms(option.cost_ms), el("span", { title: inWords(TRUST, option.trust) }, option.trust)],
    })), { text: [0, 1, 7] }),
  ];
}

/** Return what spoke against a candidate, beside what was accepted of the chosen one. */
const against = (option, chosen) => option.rejection_reasons.filter((word) => option.chosen || !chosen.chosen || !chosen.rejection_reasons.includes(word));

function reasonsOf(option, chosen) {
  const reasons = against(option, chosen).map((word) => inWords(VIOLATIONS, word)).join("; ");
  if (option.chosen) return reasons ? `chosen, though ${reasons}` : "chosen";
  return reasons || "costs more";
}

// The same question under other SLOs.

async function compare() {
  await whileBusy("Asking under other SLOs …", async () => {
    const rows = [];
    for (const { name, headers } of COMPARED) {
      const reply = await ask(headers ?? sloHeaders());
      rows.push(compared(name, reply));
      if (reply.status === 401) return failure(reply);
    }
    byId("comparison").hidden = false;
    show(byId("comparison-body"), table("The same question under other SLOs", ["SLO", "Answer", "Score", "Plan", "Certified F1", "Predicted", "Took", "SLO met"], rows, { text: [0, 1, 3, 7] }));
    byId("comparison-title").focus();
    return null;
  });
}

function compared(name, reply) {
  const { data } = reply;
  if (!reply.ok) return { cells: [name, data?.title ?? `status ${reply.status}`, "–", "–", "–", "–", ms(reply.tookMs), "refused"] };
  const met = data.slo.met === "true" ? "met" : data.slo.met.split(",").map((word) => inWords(VIOLATIONS, word)).join("; ");
  return { cells: [name, data.answer || "no answer", share(data.score), data.plan, f1(data.slo.certified_f1), ms(data.slo.predicted_ms), ms(reply.tookMs), met] };
}

// Start.

function fillExamples() {
  byId("example").append(...EXAMPLES.map((example, i) => el("option", { value: i }, example.name)));
  byId("example").addEventListener("change", () => {
    const example = EXAMPLES[field("example")];
    if (!example) return;
    byId("question").value = example.question;
    byId("context").value = example.context;
    describe();
  });
  byId("example").value = "0";
  byId("question").value = EXAMPLES[0].question;
  byId("context").value = EXAMPLES[0].context;
}

function listen() {
  byId("form").addEventListener("submit", submit);
  byId("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
  });
  byId("form").addEventListener("input", (event) => {
    if (event.target.id === "latency" || event.target.id === "floor") byId(`${event.target.id}-own`).checked = true;
    if (event.target.id === "question" || event.target.id === "context") byId("example").value = "";
    describe();
  });
  byId("compare").addEventListener("click", compare);
  byId("file").addEventListener("change", async () => {
    await readFile(byId("file").files[0]);
    byId("file").value = ""; // so that the same file can be opened again
  });
  takeDroppedFiles();
}

async function start() {
  fillExamples();
  listen();
  showKey();
  byId("latency").value = Math.log(100 / LATENCIES[0]) / Math.log(LATENCIES[1] / LATENCIES[0]);
  byId("floor").value = 0.35;
  describe();
  try {
    const reply = await call("playground/settings.json");
    if (!reply.ok) return show(byId("status"), failure(reply));
    choices = reply.data;
    byId("class").append(...Object.keys(choices.classes).map((name) => el("option", { value: name, selected: name === choices.default_class }, name)));
    byId("top-k").max = choices.max_top_k;
    const variants = await call("v1/variants");
    if (variants.ok) byId("variant").append(...variants.data.variants.filter((each) => each.served).map((each) => el("option", { value: each.name }, each.name)));
    else show(byId("status"), failure(variants));
  } catch (error) {
    if (!(error instanceof Gone)) throw error;
    show(byId("status"), unreachable());
  }
  return describe();
}

start();
