// Asks with types that openapi-typescript made of /openapi.json; offsets in UTF-16, as JavaScript counts.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const url = process.argv[2]!;
const client = createClient<paths>({ baseUrl: url });
const context = "🙂 The Normans gave their name to Normandy, a region in France.";
const body: components["schemas"]["QuestionBody"] = {
  question: "Who gave their name to Normandy?",
  contexts: ["Ada came at noon.", { context, id: "normandy" }],
  offset_unit: "utf-16",
  sentence: true,
  top_k: 1,
};
const { data, error } = await client.POST("/v1/answer", {
  params: { header: { "SLO-Latency-Ms": 5000, "SLO-Min-F1": 0.3 } },
  body,
});
if (error) throw new Error(error.detail);
const { answer, start, end, passage, sentence } = data;
if (start === null || end === null || !passage) throw new Error("no answer");
if (context.slice(start, end) !== answer) throw new Error(`${start} to ${end} is not ${answer}`);
console.log("answer:", answer, start, end, passage, sentence);
console.log("SLO met:", data.slo.met, "saved ms:", data.cost.saved_ms);
const refused = await client.POST("/v1/answer", { body: { ...body, contexts: [] } });
if (!refused.error) throw new Error("an empty list was not refused");
console.log("a problem, typed:", refused.error.status, refused.error.detail);
