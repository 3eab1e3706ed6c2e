// Reads the event stream by fetch, so that a token can be sent with it, and resumes after the last event it saw.
"use strict";

const byId = (id) => document.getElementById(id);
const ticks = [];
const history = [];
const KEPT = 300;
let lastId = "";

function text(id, value, tone) {
  const node = byId(id);
  node.textContent = value;
  node.classList.remove("good", "warn", "bad");
  if (tone) node.classList.add(tone);
}

const percent = (share) => (share === null || share === undefined ? "–" : `${(share * 100).toFixed(1)} %`);
const ms = (value) => (value === null || value === undefined ? "–" : value < 10 ? `${value.toFixed(2)} ms` : `${Math.round(value)} ms`);
const TONES = { healthy: "good", degraded: "warn", unhealthy: "bad", ready: "good", connecting: "warn", down: "bad", closed: "good", half_open: "warn", open: "bad" };
const ICONS = { good: "●", warn: "▲", bad: "✕" };
const marked = (word) => `${ICONS[TONES[word]] ?? "◌"} ${word.replace("_", "-")}`;

function showTick(tick) {
  ticks.push(tick);
  if (ticks.length > KEPT) ticks.shift();
}

function draw() {
  const tick = ticks.at(-1);
  if (!tick) return;
  const word = tick.phase === "serving" ? (tick.status === "healthy" ? "serving" : tick.status) : tick.phase;
  const tone = tick.phase === "serving" ? TONES[tick.status] : "warn";
  text("state", `${ICONS[tone]} ${word}`, tone);
  text("redis", marked(tick.redis), TONES[tick.redis]);
  text("breaker", tick.breaker === "closed" ? "● closed" : marked(tick.breaker), TONES[tick.breaker]);
  const reads = tick.reads;
  text("rate", String(reads.memory + reads.redis + reads.database + reads.failed));
  text("hits", percent(tick.hit_rate));
  text("errors", percent(tick.error_rate), tick.error_rate > 0 ? "bad" : undefined);
  text("latency", `${ms(tick.p50_ms)} / ${ms(tick.p99_ms)}`);
  text("machine", `${tick.cpu_percent} % / ${tick.memory_percent} %`);
  text("outbox", tick.outbox_lag_ms === null ? "● nothing waits" : `▲ waits for ${ms(tick.outbox_lag_ms)}`);
  drawChart();
}

function drawChart() {
  const names = ["memory", "redis", "database", "failed"];
  const top = Math.max(1, ...ticks.flatMap((tick) => names.map((name) => tick.reads[name])));
  const chart = byId("chart");
  const lines = names.map((name) => {
    const points = ticks.map((tick, at) => `${((KEPT - ticks.length + at) * 600) / (KEPT - 1)},${158 - (tick.reads[name] / top) * 152}`);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    line.setAttribute("class", name);
    line.setAttribute("points", points.join(" "));
    return line;
  });
  chart.replaceChildren(...lines);
}

function row(cells) {
  const tr = document.createElement("tr");
  for (const cell of cells) {
    const td = document.createElement("td");
    td.textContent = cell;
    tr.append(td);
  }
  return tr;
}

function showEvent(event) {
  history.unshift(event);
  history.length = Math.min(history.length, 100);
}

function drawHistory() {
  if (!history.length) return;
  byId("history").replaceChildren(...history.map(({ at_ms, event, seq, connection, ...details }) => {
    const words = Object.entries(details).map(([name, value]) => `${name.replaceAll("_", " ")}: ${typeof value === "object" ? JSON.stringify(value) : value}`);
    return row([new Date(at_ms).toLocaleTimeString(), event.replaceAll("_", " "), words.join(" · ")]);
  }));
}

async function showStatus() {
  const status = await (await fetch("/v1/status")).json();
  const notice = byId("notice");
  notice.hidden = !status.service.notice;
  notice.textContent = status.service.notice ?? "";
  byId("checks").replaceChildren(...Object.entries(status.health.checks).map(([name, check]) => {
    const tr = row([name, marked(check.status), ms(check.latency_ms), check.message]);
    tr.children[1].classList.add(TONES[check.status]);
    return tr;
  }));
  const items = [
    ...status.service.queries.map((name) => `GET /v1/queries/${name}`),
    ...status.service.statements.map((name) => `POST /v1/statements/${name}`),
  ].map((line) => {
    const li = document.createElement("li");
    li.textContent = line;
    return li;
  });
  if (items.length) byId("programs").replaceChildren(...items);
  else byId("programs").firstElementChild.textContent = "None is configured.";
}

function take(frame) {
  let name = "message";
  let data = "";
  for (const line of frame.split("\n")) {
    if (line.startsWith("id: ")) lastId = line.slice(4);
    else if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (!data) return;
  const value = JSON.parse(data);
  if (name === "tick") showTick(value);
  else showEvent(value);
}

async function follow() {
  const response = await fetch("/v1/events", { headers: lastId ? { "Last-Event-ID": lastId } : {} });
  if (!response.ok) throw new Error(`status ${response.status}`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const frames = held.split("\n\n");
    held = frames.pop();
    frames.forEach(take);
    draw();
    drawHistory();
  }
}

async function live() {
  let pause = 500;
  for (;;) {
    try {
      await showStatus();
      pause = 500;
      await follow();
    } catch {
      pause = Math.min(pause * 2, 5000);
    }
    text("state", "✕ no connection to the service, trying again", "bad");
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

setInterval(() => showStatus().catch(() => {}), 5000);
live();
