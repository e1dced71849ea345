// The live view: what the gateway does now, from /metrics, /readyz and /v1/variants. Nothing is made up while it is gone.

import { Gone, call, failure, showKey } from "./api.js";
import { history, number, scatter, widthIn } from "./charts.js";
import { bar, byId, el, show, table } from "./dom.js";
import { growth, parse, sums } from "./metrics.js";
import { TRUST, f1, inWords, ms, share } from "./words.js";

const EVERY_MS = 2000;
const KEPT = 60; // readings: two minutes
const CATALOG_EVERY = 5; // readings

const readings = []; // {at, samples}; null where the gateway was gone
let paused = false;
let lastSeen = null;
let count = 0;
let catalog = null;

async function turn() {
  if (!paused && !document.hidden) {
    try {
      await read();
    } catch (error) {
      if (!(error instanceof Gone)) throw error;
      gone();
    }
  }
  setTimeout(turn, EVERY_MS);
}

async function read() {
  const ready = await call("readyz");
  const metrics = await call("metrics");
  if (count % CATALOG_EVERY === 0 || catalog === null) {
    const reply = await call("v1/variants");
    catalog = reply.ok ? reply.data : null;
    if (catalog) showCatalog();
  }
  count += 1;
  lastSeen = new Date();
  byId("figures").classList.remove("stale");
  show(byId("connection"), state(ready, metrics));
  if (!metrics.ok) {
    for (const id of ["tiles", "history", "plans", "classes"]) show(byId(id), el("p", { class: "none" }, "Not known: the metrics could not be read."));
    return;
  }
  readings.push({ at: performance.now(), samples: parse(metrics.data) });
  readings.splice(0, readings.length - KEPT);
  showLoad();
}

function state(ready, metrics) {
  const body = ready.data ?? {};
  const reasons = [...(body.reasons ?? []), body.refused && `the new catalog is refused: ${body.refused}`].filter(Boolean);
  const banner = body.ready
    ? el("p", { class: "state good-state" }, "Ready", body.engine && `: ${body.backend}, ${body.engine}`, ` (${clock()})`)
    : el("p", { class: "state bad-state" }, `Not ready${reasons.length ? `: ${reasons.join("; ")}` : ""} (${clock()})`);
  const elsewhere = metrics.status === 404 && el("p", { class: "warn" }, "This gateway shows its metrics on a port of their own (metrics_port): load and attainment cannot be shown here.");
  return [banner, tried(body.candidate), body.ready && reasons.map((reason) => el("p", { class: "warn" }, reason)), metrics.ok ? null : elsewhere || failure(metrics)];
}

/** Return what is said of a candidate catalog: how both sets do while it is tried, why it is not, or what became of it. */
function tried(candidate) {
  if (!candidate) return null;
  if (candidate.refused) return el("p", { class: "warn" }, `The candidate catalog is refused: ${candidate.refused}`);
  if (!candidate.tried) return candidate.decided && el("p", { class: "soft" }, `The last candidate catalog: ${candidate.decided}`);
  const rate = (bad, n) => (n ? share(bad / n) : "none yet");
  const sets = ["current", "candidate"].map((name) => {
    const set = candidate.sets[name];
    return `${name}: ${set.requests} requests, SLO violated ${rate(set.slo_violated, set.requests)}, failed ${rate(set.failed, set.requests)}, answers that differ from the largest variant's ${rate(set.differed, set.compared)}`;
  });
  const how = candidate.shadow ? "in shadow" : `on ${share(candidate.share)} of the requests`;
  return el("p", { class: "soft" }, `A candidate catalog is tried ${how}. ${sets.join("; ")}.`);
}

function gone() {
  readings.push(null);
  readings.splice(0, readings.length - KEPT);
  byId("figures").classList.add("stale");
  show(byId("connection"), el("p", { class: "state bad-state" },
    lastSeen ? `Disconnected: the gateway cannot be reached. The figures below are of ${clock()}; trying again.` : "Disconnected: the gateway cannot be reached; trying again."));
}

const clock = () => lastSeen.toLocaleTimeString("en-GB");

// Load.

/** Return what a counter grew by in a second, by label, over the readings of the last minute; null: not known yet. */
function rates(name, label, where = {}, last = 30) {
  const known = readings.filter(Boolean).slice(-last);
  if (known.length < 2) return null;
  const seconds = (known.at(-1).at - known[0].at) / 1e3;
  const totals = new Map();
  for (let i = 1; i < known.length; i += 1) {
    const before = sums(known[i - 1].samples, name, label, where);
    for (const [key, value] of sums(known[i].samples, name, label, where)) {
      totals.set(key, (totals.get(key) ?? 0) + growth(before.get(key) ?? 0, value));
    }
  }
  return new Map([...totals].map(([key, value]) => [key, value / seconds]));
}

function showLoad() {
  const now = readings.at(-1).samples;
  const one = (name) => sums(now, name).get("") ?? 0;
  const recent = rates("bertier_requests_total", null, {}, 4)?.get("") ?? null;
  const pending = one("bertier_windows_pending");
  const waits = [...sums(now, "bertier_queue_wait_seconds", "variant").values()];
  show(byId("tiles"), [
    ["Requests/s", recent === null ? "…" : number(recent)],
    ["In flight", number(one("bertier_requests_in_flight"))],
    ["Windows at the models", number(pending)],
    ["Longest predicted wait", ms(1e3 * Math.max(0, ...waits))],
    ["Connections", number(one("bertier_http_connections"))],
  ].map(([name, value]) => el("div", { class: "tile" }, el("span", { class: "value" }, value), el("span", { class: "soft small" }, name))));
  const perReading = readings.map((reading, i) => (reading && readings[i - 1] ? growth(sums(readings[i - 1].samples, "bertier_requests_total").get("") ?? 0, sums(reading.samples, "bertier_requests_total").get("") ?? 0) / ((reading.at - readings[i - 1].at) / 1e3) : null));
  show(byId("history"), history({ width: widthIn(byId("history")), title: "Requests per second of the last two minutes", values: [...Array(KEPT - perReading.length).fill(null), ...perReading] }));
  showPlans();
  showClasses();
}

function showPlans() {
  const byPlan = rates("bertier_decisions_total", "plan");
  const total = [...(byPlan?.values() ?? [])].reduce((sum, rate) => sum + rate, 0);
  if (byPlan === null) return show(byId("plans"), el("p", { class: "none" }, "Known after a second reading."));
  if (total === 0) return show(byId("plans"), el("p", { class: "none" }, "No requests in the last minute."));
  const rows = [...byPlan].filter(([, rate]) => rate > 0).sort((a, b) => b[1] - a[1]);
  return show(byId("plans"), table("Requests per second by plan, last minute", ["Plan", "Requests/s", "Share"], rows.map(([plan, rate]) => ({
    cells: [plan === "none" ? "refused" : plan, number(rate), [share(rate / total), bar([{ share: rate / total, class: "fill" }])]],
  }))));
}

function showClasses() {
  const of = (objective, outcome) => rates("bertier_slo_requests_total", "slo_class", { objective, outcome });
  const met = of("joint", "met");
  if (met === null) return show(byId("classes"), el("p", { class: "none" }, "Known after a second reading."));
  const attained = (objective, name) => {
    const [good, bad] = [of(objective, "met")?.get(name) ?? 0, of(objective, "violated")?.get(name) ?? 0];
    return good + bad ? good / (good + bad) : null;
  };
  return show(byId("classes"), table("SLO attainment by class, last minute", ["Class", "Whole SLO", "Latency", "Accuracy"], [...met.keys()].map((name) => {
    const both = attained("joint", name);
    return { cells: [name, both === null ? "no requests" : [share(both), bar([{ share: both, class: both < 0.95 ? "fill low" : "fill" }])], share(attained("latency", name)), share(attained("accuracy", name))] };
  })));
}

// What is served.

function showCatalog() {
  const variants = new Map(catalog.variants.map((each) => [each.name, each]));
  const points = catalog.plans.filter((plan) => plan.served).map((plan) => ({
    name: plan.name,
    x: expectedMs(plan, variants),
    y: plan.certificate.floor,
    kind: plan.trust === "broken" ? "rejected" : plan.variants.length > 1 ? "cascade" : "possible",
    label: plan.trust,
  })).filter((point) => point.x > 0);
  const best = points.filter((p) => !points.some((q) => q.x < p.x && q.y >= p.y));
  show(byId("front"),
    points.length === 0 ? el("p", { class: "none" }, "No plan is served.") : [
      scatter({ title: `Plans by expected model time and certified F1. On the Pareto front: ${best.map((p) => p.name).join(", ")}`, points, front: best, width: widthIn(byId("front")), xLabel: "expected model time, ms (P50, 256 tokens, log scale)" }),
      el("ul", { class: "legend" }, [["possible", "one variant"], ["cascade", "cascade"], ["rejected", "certificate broken"]].map(([kind, text]) => el("li", {}, el("span", { class: `dot ${kind}` }), text)))]);
  show(byId("certificates"), table("Certificates of the plans", ["Plan", "Floor F1", "F1 measured", "Confidence", "Trust here", "Model time", "Shadow answers", "Evidence against it"],
    [...catalog.plans].sort((a, b) => b.certificate.floor - a.certificate.floor).map((plan) => ({ cells: [
      plan.name, f1(plan.certificate.floor), f1(plan.certificate.f1), share(1 - plan.certificate.delta),
      plan.served ? el("span", { class: plan.trust === "broken" ? "bad" : null, title: inWords(TRUST, plan.trust) }, plan.trust) : "not served",
      ms(expectedMs(plan, variants)), plan.evidence ? compared(plan.evidence) : "–", plan.evidence ? watch(plan.evidence) : "not watched",
    ] })), { text: [0, 4, 7] }));
  show(byId("variants"), table("Variants", ["Variant", "State", "Parameters", "Size", "Precision", "F1 on"], catalog.variants.map((each) => ({ cells: [
    each.name, each.problem ?? (each.served ? (each.failing ? "fails, left out" : each.host_differs ? `served; ${each.host_differs}` : "served") : "not served"),
    `${(each.parameters / 1e6).toFixed(1)} M`, `${(each.size_bytes / 1e6).toFixed(1)} MB`, each.precision, each.quality.length ? `${f1(each.quality.at(-1).f1)} (${each.quality.at(-1).data})` : "–",
  ] })), { text: [0, 1, 4] }));
}

/** Return the expected model time of a plan for 256 tokens: each stage by how often it is reached. */
function expectedMs(plan, variants) {
  const stage = (name) => {
    const alone = (variants.get(name)?.profile?.cells ?? []).filter((cell) => cell.batch === 1);
    return (alone.find((cell) => cell.bucket >= 256) ?? alone.at(-1))?.p50_ms ?? 0;
  };
  return plan.variants.reduce((sum, name, i) => sum + (plan.reach[i] ?? 1) * stage(name), 0);
}

const compared = (evidence) => evidence.same + evidence.different + evidence.one_silent + evidence.both_silent;
const watch = (evidence) => (evidence.broken ? "broken" : `${evidence.log10.toFixed(2)} of ${evidence.alarm_at.toFixed(2)}`);

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  show(byId("pause"), paused ? "Go on" : "Pause");
});
showKey();
turn();
