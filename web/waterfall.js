// A trace as rows: pure functions over OTLP/JSON, no document here. Times are BigInt nanoseconds.

const KINDS = ["unspecified", "internal", "server", "client", "producer", "consumer"];

/** An OTLP AnyValue as text. */
export function text(value) {
  if (!value) return "";
  if (value.arrayValue) return "[" + (value.arrayValue.values ?? []).map(text).join(", ") + "]";
  const first = Object.values(value)[0];
  return first === null || first === undefined ? "" : String(first);
}

function table(attributes) {
  return new Map((attributes ?? []).map((pair) => [pair.key, text(pair.value)]));
}

/** All spans of `{"resourceSpans": [..]}`, flat. */
export function flatten(trace) {
  const spans = [];
  for (const group of trace.resourceSpans ?? []) {
    const resource = table(group.resource?.attributes);
    for (const span of (group.scopeSpans ?? []).flatMap((scope) => scope.spans ?? [])) {
      const attributes = table(span.attributes);
      const reason = attributes.get("spanwire.parent.reason");
      spans.push({
        id: span.spanId,
        parent: span.parentSpanId ?? "",
        name: span.name ?? "",
        service: resource.get("service.name") ?? "",
        kind: KINDS[span.kind] ?? String(span.kind),
        start: BigInt(span.startTimeUnixNano),
        end: BigInt(span.endTimeUnixNano),
        failed: span.status?.code === 2,
        source: attributes.get("spanwire.parent.source") ?? "",
        reason: reason ?? "",
        attributes,
        resource,
        children: [],
        depth: 0,
      });
    }
  }
  return spans;
}

/** The spans in the order of the tree, each with its depth; a span whose parent is missing stands at the top. */
export function preorder(spans) {
  const known = new Map(spans.map((span) => [span.id, span]));
  const byStart = (one, other) => (one.start < other.start ? -1 : one.start > other.start ? 1 : 0);
  const tops = [];
  for (const span of [...spans].sort(byStart)) {
    const parent = known.get(span.parent);
    if (parent && parent !== span) parent.children.push(span);
    else tops.push(span);
  }
  const rows = [];
  const seen = new Set();
  const walk = (from) => {
    // A stack instead of recursion: a chain of calls can be long.
    const stack = [...from].reverse().map((span) => [span, 0]);
    while (stack.length > 0) {
      const [span, depth] = stack.pop();
      if (seen.has(span)) continue;
      seen.add(span);
      span.depth = depth;
      rows.push(span);
      for (const child of [...span.children].reverse()) stack.push([child, depth + 1]);
    }
  };
  walk(tops);
  // Parents that point at each other hang from no top; show them all the same.
  for (const span of spans) if (!seen.has(span)) walk([span]);
  return rows;
}

/** Start and end of the whole. */
export function extent(spans) {
  let [start, end] = [spans[0].start, spans[0].end];
  for (const span of spans) {
    if (span.start < start) start = span.start;
    if (span.end > end) end = span.end;
  }
  return { start, end };
}

/** Nanoseconds for people. */
export function duration(nanoseconds) {
  const number = Number(nanoseconds);
  const [unit, scale] =
    number < 1e3 ? ["ns", 1] : number < 1e6 ? ["µs", 1e3] : number < 1e9 ? ["ms", 1e6] : ["s", 1e9];
  const value = number / scale;
  return `${value >= 100 || scale === 1 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2)} ${unit}`;
}
