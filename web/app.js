// The page: a list of traces, and one trace. Whatever comes from a span enters the document as text, never as markup.

import { duration, extent, flatten, preorder } from "./waterfall.js";

const COLOURS = 12;
const $ = (id) => document.getElementById(id);
let token = sessionStorage.getItem("token") ?? "";
let latest = 0;

/** An element with classes and text. */
function make(tag, className = "", content = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (content !== "") element.textContent = content;
  return element;
}

async function ask(path) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { headers, cache: "no-store" });
  if (response.status === 401) {
    $("token").hidden = false;
    throw new Error(token ? "The token was not accepted." : "A token is needed.");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? `HTTP ${response.status}`);
  return answer;
}

function show(section) {
  $("list").hidden = section !== "list";
  $("trace").hidden = section !== "trace";
}

/** Runs what the address says; an answer that comes after the next question is not shown. */
async function route() {
  const turn = ++latest;
  const isCurrent = () => turn === latest;
  $("problem").hidden = true;
  try {
    const [, view, id] = location.hash.split(/[/?]/);
    if (view === "trace") await openTrace(decodeURIComponent(id ?? ""), isCurrent);
    else await openList(new URLSearchParams(location.hash.split("?")[1] ?? ""), isCurrent);
  } catch (error) {
    if (!isCurrent()) return;
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }
}

// ---- the list

async function openList(query, isCurrent) {
  document.title = "spanwire";
  for (const field of $("filters").elements) {
    if (field.type === "checkbox") field.checked = query.get(field.name) === field.value;
    else if (field.name) field.value = query.get(field.name) ?? "";
  }
  show("list");
  const list = await ask(`api/traces?${query}`);
  if (!isCurrent()) return;
  $("traces").replaceChildren(...list.traces.map(traceRow));
  const count = list.traces.length;
  $("list-note").textContent =
    count === 0 ? "No trace matches." : list.partial ? `${count} traces; the search took too long to be complete.` : "";
  const { services } = await ask("api/services");
  const options = services.map((service) => Object.assign(make("option"), { value: service.name }));
  if (isCurrent()) $("service-names").replaceChildren(...options);
}

function traceRow(trace) {
  const row = make("tr");
  const start = make("td");
  const link = make("a", "", clock(BigInt(trace.startTimeUnixNano)));
  link.href = `#/trace/${encodeURIComponent(trace.traceId)}`;
  start.append(link);
  const root = make("td", "wide");
  root.append(make("strong", "", trace.rootService), " ", trace.rootName);
  row.append(
    start,
    root,
    make("td", "number", duration(trace.durationNano)),
    make("td", "number", String(trace.spanCount)),
    make("td", trace.errorCount > 0 ? "number error" : "number faint", String(trace.errorCount)),
    make("td", "wide", trace.services.join(", ")),
  );
  return row;
}

function clock(unixNano) {
  const date = new Date(Number(unixNano / 1000000n));
  const two = (number) => String(number).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return `${day} ${time}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

// ---- one trace

async function openTrace(id, isCurrent) {
  const spans = flatten(await ask(`api/traces/${encodeURIComponent(id)}`));
  if (!isCurrent()) return;
  const rows = preorder(spans);
  const { start, end } = extent(spans);
  const colours = new Map();
  for (const span of rows) if (!colours.has(span.service)) colours.set(span.service, colours.size % COLOURS);

  document.title = `${rows[0].name} - spanwire`;
  $("trace-title").textContent = `${rows[0].service}: ${rows[0].name}`;
  const failed = spans.filter((span) => span.failed).length;
  const facts = [`trace ${id}`, clock(start), duration(end - start), `${spans.length} spans`, `${failed} errors`];
  $("trace-facts").textContent = facts.join(" · ");
  $("legend").replaceChildren(...[...colours].map(([service, colour]) => coloured(make("li", "", service), colour)));
  const ticks = make("div", "ticks");
  ticks.append(...[0n, 1n, 2n, 3n, 4n].map((part) => make("span", "", duration(((end - start) * part) / 4n))));
  $("ruler").replaceChildren(ticks);
  const elements = rows.map((span) => spanRow(span, start, end, colours.get(span.service)));
  $("spans").replaceChildren(...elements);
  $("details").replaceChildren();
  elements[0].tabIndex = 0;
  show("trace");
}

function coloured(element, colour) {
  element.style.setProperty("--service", `var(--service-${colour})`);
  return element;
}

function spanRow(span, start, end, colour) {
  const row = coloured(make("div", "span"), colour);
  row.span = span;
  row.tabIndex = -1;
  row.setAttribute("role", "treeitem");
  row.setAttribute("aria-level", String(span.depth + 1));
  if (span.children.length > 0) row.setAttribute("aria-expanded", "true");

  const name = make("div", "name");
  name.style.paddingLeft = `${Math.min(span.depth, 24)}rem`;
  name.title = `${span.service}: ${span.name} (${span.kind})`;
  name.append(make("span", "fold", span.children.length > 0 ? "▾" : ""), make("span", "service", span.service), span.name);
  name.append(" ", make("span", "faint", span.kind));

  const code = span.attributes.get("http.response.status_code") ?? span.attributes.get("error.type") ?? "";
  const status = make("div", span.failed ? "status error" : "status", span.failed ? `${code} error`.trim() : code);
  const reason = span.reason ? `${span.source}: ${span.reason}` : span.source;
  const source = make("div", span.source === "unknown" ? "source unknown" : "source", reason);
  source.title = "how the parent was found";

  const whole = Number(end - start) || 1;
  const left = (Number(span.start - start) / whole) * 100;
  const width = (Number(span.end - span.start) / whole) * 100;
  const track = make("div", "track");
  const bar = make("div", span.failed ? "bar failed" : "bar");
  bar.style.left = `min(${left}%, calc(100% - 2px))`;
  bar.style.width = `${width}%`;
  track.append(bar);

  row.append(name, status, source, make("div", "number", duration(span.end - span.start)), track);
  row.addEventListener("click", (event) => {
    focusRow(row);
    if (event.target.className === "fold") fold(row, row.getAttribute("aria-expanded") === "true");
    else showDetails(row);
  });
  return row;
}

function rowsShown() {
  return [...$("spans").children].filter((row) => !row.hidden);
}

function focusRow(row) {
  if (!row) return;
  for (const other of $("spans").children) other.tabIndex = -1;
  row.tabIndex = 0;
  row.focus();
}

/** Hides or shows everything below a row; what was folded inside stays folded. */
function fold(row, isFolded) {
  if (!row.hasAttribute("aria-expanded")) return;
  row.setAttribute("aria-expanded", String(!isFolded));
  row.querySelector(".fold").textContent = isFolded ? "▸" : "▾";
  let hiddenBelow = Infinity;
  for (const other of $("spans").children) {
    const depth = other.span.depth;
    if (depth <= hiddenBelow) hiddenBelow = Infinity;
    other.hidden = hiddenBelow < depth;
    if (!other.hidden && other.getAttribute("aria-expanded") === "false") hiddenBelow = depth;
  }
}

const KEYS = {
  ArrowDown: (row, rows) => focusRow(rows[rows.indexOf(row) + 1]),
  ArrowUp: (row, rows) => focusRow(rows[rows.indexOf(row) - 1]),
  Home: (_, rows) => focusRow(rows[0]),
  End: (_, rows) => focusRow(rows[rows.length - 1]),
  ArrowLeft: (row, rows) => {
    if (row.getAttribute("aria-expanded") === "true") fold(row, true);
    else focusRow(rows.slice(0, rows.indexOf(row)).findLast((other) => other.span.depth < row.span.depth));
  },
  ArrowRight: (row) => fold(row, false),
  Enter: (row) => showDetails(row),
  " ": (row) => showDetails(row),
};

function onKey(event) {
  const row = event.target.closest(".span");
  if (!row || !KEYS[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  KEYS[event.key](row, rowsShown());
}

function showDetails(row) {
  for (const other of $("spans").children) other.setAttribute("aria-selected", String(other === row));
  const span = row.span;
  const facts = new Map([
    ["span id", span.id],
    ["parent span id", span.parent || "none"],
    ["kind", span.kind],
    ["status", span.failed ? "error" : "unset"],
    ["duration", duration(span.end - span.start)],
  ]);
  const parts = [[`${span.service}: ${span.name}`, facts], ["Attributes", span.attributes], ["Resource", span.resource]];
  $("details").replaceChildren(
    ...parts.flatMap(([title, entries]) => {
      const list = make("dl");
      for (const [key, value] of entries) list.append(make("dt", "", key), make("dd", "", value));
      return [make("h3", "", title), list];
    }),
  );
}

// ---- events

$("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(event.target)) if (value) query.append(name, value);
  const target = query.size > 0 ? `#/traces?${query}` : "#/";
  if (location.hash === target) route();
  else location.hash = target;
});

$("jump").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = /[0-9a-f]{32}/i.exec(new FormData(event.target).get("id"));
  $("problem").hidden = Boolean(id);
  $("problem").textContent = "A trace id is 32 hex digits.";
  if (id) location.hash = `#/trace/${id[0].toLowerCase()}`;
});

$("token").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token-value").value.trim();
  sessionStorage.setItem("token", token);
  $("token").hidden = true;
  route();
});

$("spans").addEventListener("keydown", onKey);
addEventListener("hashchange", route);
route();
