// The gateway's words for a decision, in plain ones.

export const REASONS = {
  meets_slo: "the cheapest plan that meets the SLO",
  pinned: "the variant you asked for",
  most_accurate_in_time: "no plan meets the whole SLO: the most accurate one in time",
  fastest: "no plan is in time: the fastest one",
  least_late: "no plan meets the whole SLO: the one that keeps the floor with the least lateness",
  most_accurate: "no plan meets the whole SLO: the most accurate one",
  infeasible: "refused: no plan could meet the SLO on an idle system",
  busy: "refused: too busy to meet the SLO now",
  too_late: "refused: no plan would end by the deadline",
  unavailable: "no model server can answer",
};

export const VIOLATIONS = {
  late: "later than the target",
  "below-floor": "certified below the floor",
  "escalation-cut": "the cascade was cut short",
  partial: "not all of the context was read",
  uncertified: "its certificate does not hold on this host",
  deadline: "predicted to end after the deadline",
  failing: "a variant of it fails",
  pinned: "another variant was asked for",
};

export const TRUST = {
  certified: "certified on this kind of host",
  transferred: "certified elsewhere, same answers here",
  uncertified: "not certified on this host",
  broken: "the certificate no longer holds",
};

export const inWords = (words, name) => words[name] ?? String(name);
export const ms = (value) => (value === null || value === undefined ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`);
export const share = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(value > 0.1 ? 0 : 1)} %`);
export const f1 = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
