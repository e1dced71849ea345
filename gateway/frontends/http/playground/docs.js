// The API reference: one section an operation, from this gateway's OpenAPI document.

import { Gone, call, failure, showKey, unreachable } from "./api.js";
import { byId, el, show, table } from "./dom.js";

const METHODS = ["get", "post", "put", "delete", "patch"];

function render(document) {
  const operations = Object.entries(document.paths).flatMap(([path, item]) => METHODS.filter((method) => item[method]).map((method) => ({ path, method, ...item[method] })));
  const schemas = Object.entries(document.components?.schemas ?? {});
  show(byId("reference"),
    el("nav", { "aria-label": "On this page", class: "contents" },
      el("h2", {}, "Routes"), el("ul", {}, operations.map((each) => el("li", {}, el("a", { href: `#${anchor(each)}` }, el("span", { class: `method ${each.method}` }, each.method.toUpperCase()), " ", each.path)))),
      el("h2", {}, "Schemas"), el("ul", {}, schemas.map(([name]) => el("li", {}, el("a", { href: `#schema-${name}` }, name))))),
    el("div", {},
      el("p", {}, `${document.info.title} ${document.info.version}. ${document.info.description ?? ""}`),
      operations.map(operation),
      el("h2", {}, "Schemas"), schemas.map(([name, schema]) => el("section", { id: `schema-${name}` }, el("h3", {}, name), schema.description && el("p", {}, prose(schema.description)), fields(name, schema)))));
}

function operation(each) {
  const id = anchor(each);
  return el("section", { id, class: "operation", "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, el("span", { class: `method ${each.method}` }, each.method.toUpperCase()), " ", el("code", {}, each.path)),
    el("p", {}, each.summary ?? ""), each.description && each.description !== each.summary && el("p", {}, each.description),
    each.parameters?.length > 0 && [el("h3", {}, "Parameters"), table(`Parameters of ${each.method.toUpperCase()} ${each.path}`, ["Name", "In", "Type", "Meaning"],
      each.parameters.map((one) => ({ cells: [el("code", {}, one.name), one.in, typeOf(one.schema), prose(one.description)] })), { text: [0, 1, 2, 3] })],
    each.requestBody && [el("h3", {}, "Body"), contents(each.requestBody.content)],
    el("h3", {}, "Responses"),
    table(`Responses of ${each.method.toUpperCase()} ${each.path}`, ["Status", "Meaning", "Body", "Headers"], Object.entries(each.responses ?? {}).map(([status, response]) => ({
      cells: [status, prose(response.description), contents(response.content ?? {}), Object.keys(response.headers ?? {}).join(", ")],
    })), { text: [0, 1, 2, 3] }));
}

const contents = (content) => Object.entries(content).map(([mediaType, { schema }]) => el("div", {}, el("code", {}, mediaType), ": ", typeOf(schema)));

function fields(name, schema) {
  if (!schema.properties) return el("p", {}, typeOf(schema));
  const required = new Set(schema.required ?? []);
  return table(`Fields of ${name}`, ["Field", "Type", "Required", "Meaning"], Object.entries(schema.properties).map(([field, one]) => ({
    cells: [el("code", {}, field), typeOf(one), required.has(field) ? "yes" : "no", prose(one.description)],
  })), { text: [0, 1, 2, 3] });
}

/** Return a text whose `code` is set as code. */
const prose = (text) => (text ?? "").split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));

/** Return a schema as a short text; a reference is a link. */
function typeOf(schema) {
  if (!schema) return "any";
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    return el("a", { href: `#schema-${name}` }, name);
  }
  const several = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (several) return several.flatMap((one, i) => [i ? " or " : "", typeOf(one)]);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.type === "array") return ["list of ", typeOf(schema.items)];
  return [schema.type ?? "any", range(schema)];
}

function range({ minimum, maximum, maxLength, default: usual }) {
  const parts = [minimum !== undefined && `from ${minimum}`, maximum !== undefined && `to ${maximum}`, maxLength !== undefined && `at most ${maxLength} characters`, usual !== undefined && usual !== null && `default ${JSON.stringify(usual)}`].filter(Boolean);
  return parts.length ? ` (${parts.join(", ")})` : "";
}

const anchor = ({ method, path }) => `${method}${path.replaceAll(/[^\w]+/g, "-")}`;

async function start() {
  showKey();
  try {
    const reply = await call("openapi.json");
    if (!reply.ok) return show(byId("status"), failure(reply));
    render(reply.data);
    if (location.hash) byId(location.hash.slice(1))?.scrollIntoView();
  } catch (error) {
    if (!(error instanceof Gone)) throw error;
    show(byId("status"), unreachable());
  }
  return null;
}

start();
