// A request as a command and as a program, to copy. A key is never written out.

/** Return the curl command. `url`: of the gateway. */
export function curl(url, headers, body, withKey) {
  const lines = [`curl -i ${quote(`${url}/v1/answer`)}`];
  if (withKey) lines.push('-H "Authorization: Bearer $BERTIER_API_KEY"');
  for (const [name, value] of Object.entries(headers)) lines.push(`-H ${quote(`${name}: ${value}`)}`);
  lines.push("-H 'Content-Type: application/json'", `-d ${quote(JSON.stringify(body))}`);
  return lines.join(" \\\n  ");
}

const ARGUMENTS = {
  "SLO-Latency-Ms": ["latency_ms", Number],
  "SLO-Min-F1": ["min_f1", Number],
  "SLO-Class": ["slo_class", JSON.stringify],
  "SLO-Policy": ["policy", JSON.stringify],
  "SLO-Variant": ["variant", JSON.stringify],
};

/** Return the program in Python. */
export function python(url, headers, body, withKey) {
  const given = Object.entries(headers).filter(([name]) => name in ARGUMENTS).map(([name, value]) => `${ARGUMENTS[name][0]}=${ARGUMENTS[name][1](value)}`);
  const security = withKey ? ', security=Security(api_key=os.environ["BERTIER_API_KEY"])' : "";
  return [
    ...(withKey ? ["import os", "", "from bertier import Client, Security"] : ["from bertier import Client"]),
    "",
    `question = ${JSON.stringify(body.question)}`,
    `context = ${JSON.stringify(body.context)}`,
    "",
    `with Client(${JSON.stringify(url)}${security}) as client:`,
    `    answer = client.answer(${["question", "context", ...given].join(", ")})`,
    "    print(answer.text, answer.score, answer.variant)",
  ].join("\n");
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
