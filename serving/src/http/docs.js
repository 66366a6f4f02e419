"use strict";
// Lists the endpoints of /openapi.json with a form to try each.

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

const MAX_SHOWN = 200000;

function input(parameter) {
  const field = element("input", { name: parameter.name, required: parameter.required === true });
  field.dataset.in = parameter.in;
  const name = parameter.name + (parameter.required ? " *" : "");
  return element("label", {}, element("code", { textContent: name }), field,
    element("small", { textContent: parameter.description ?? "" }));
}

function bodyFields(operation) {
  if (!operation.requestBody) return [];
  const types = Object.keys(operation.requestBody.content ?? {});
  const type = element("select", { name: "content-type", title: "Content type" },
    ...types.map((name) => element("option", { textContent: name })));
  const text = element("textarea", { name: "body", spellcheck: false });
  text.setAttribute("aria-label", "Body");
  return [element("p", { textContent: operation.requestBody.description ?? "Body" }), type, text];
}

function request(method, path, form) {
  const query = new URLSearchParams();
  const options = { method: method.toUpperCase(), headers: {} };
  const key = document.getElementById("key").value.trim();
  if (key) options.headers.authorization = `Bearer ${key}`;
  for (const field of form.querySelectorAll("input")) {
    if (field.value === "") continue;
    if (field.dataset.in === "path") path = path.replace(`{${field.name}}`, encodeURIComponent(field.value));
    else if (field.dataset.in === "query") query.append(field.name, field.value);
    else options.headers[field.name] = field.value;
  }
  const text = form.querySelector("textarea");
  if (text) {
    options.body = text.value;
    options.headers["content-type"] = form.querySelector("select").value;
  }
  const asked = query.toString();
  return [asked ? `${path}?${asked}` : path, options];
}

function pretty(text, type) {
  if (!type.includes("json")) return text;
  // Numbers with more digits than a double would lose them: such an answer is shown as it came.
  if (/\d{16}/.test(text)) return text;
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

async function show(method, path, form, output) {
  const [url, options] = request(method, path, form);
  output.hidden = false;
  output.textContent = `${options.method} ${url}\n...`;
  const started = performance.now();
  try {
    const response = await fetch(url, options);
    const head = `${options.method} ${url}\n${response.status} ${response.statusText}`;
    const type = response.headers.get("content-type") ?? "";
    if (type.includes("event-stream")) return await stream(response, head, output);
    const text = await response.text();
    const took = `${Math.round(performance.now() - started)} ms, ${text.length} characters`;
    output.textContent = `${head} (${took})\n\n${pretty(text, type).slice(0, MAX_SHOWN)}`;
  } catch (error) {
    output.textContent = `${options.method} ${url}\n${error}`;
  }
}

async function stream(response, head, output) {
  output.textContent = `${head}\n\n`;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    output.textContent = (output.textContent + value).slice(-MAX_SHOWN);
  }
}

function endpoint(method, path, operation) {
  const output = element("pre", { hidden: true });
  const answers = element("dl");
  for (const [status, answer] of Object.entries(operation.responses ?? {})) {
    answers.append(element("dt", { textContent: status }), element("dd", { textContent: answer.description ?? "" }));
  }
  const form = element("form", {}, ...(operation.parameters ?? []).map(input), ...bodyFields(operation),
    element("button", { type: "submit", textContent: "Send" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    show(method, path, form, output);
  });
  const summary = element("summary", {}, element("b", { textContent: method.toUpperCase() }),
    element("code", { textContent: path }), element("span", { textContent: operation.summary ?? "" }));
  const scopes = (operation.security ?? []).flatMap((one) => Object.values(one)).flat().join(" or ");
  const needs = scopes ? `Needs the scope ${scopes}.` : "Open to everybody.";
  const about = element("p", { textContent: `${operation.description ?? ""} ${needs}` });
  return element("details", {}, summary, about, answers, form, output);
}

function list(api) {
  document.getElementById("about").textContent = api.info.description;
  const groups = document.getElementById("groups");
  const endpoints = document.getElementById("endpoints");
  for (const tag of api.tags ?? []) {
    const section = element("section", { id: tag.name }, element("h2", { textContent: tag.name }),
      element("p", { textContent: tag.description ?? "" }));
    for (const [path, item] of Object.entries(api.paths)) {
      for (const [method, operation] of Object.entries(item)) {
        if (operation.tags?.includes(tag.name)) section.append(endpoint(method, path, operation));
      }
    }
    groups.append(element("a", { href: `#${tag.name}`, textContent: tag.name }));
    endpoints.append(section);
  }
}

fetch("/openapi.json").then((response) => response.json()).then(list).catch((error) => {
  document.getElementById("about").textContent = `The interface could not be read: ${error}`;
});
