"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme"), name = document.getElementById("theme-name");
  const themes = ["auto", "light", "dark"];
  const words = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };
  const asked = new URLSearchParams(location.search).get("theme");
  let theme = themes.includes(asked) ? asked : "auto";
  const show = () => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    name.textContent = words[theme];
  };
  button.hidden = false;
  button.onclick = () => { theme = themes[(themes.indexOf(theme) + 1) % 3]; show(); };
  show();

  const data = JSON.parse(document.getElementById("data").textContent), tip = document.getElementById("tip");
  const figures = [...document.querySelectorAll("figure[data-subject]")];
  const lasting = ms => ms == null ? "–" : ms < 1 ? `${Math.round(ms * 1000)} µs` : ms < 100 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
  const hide = () => { tip.hidden = true; figures.forEach(f => f.querySelector(".cross").classList.remove("on")); };
  const line = (label, value) => {
    const row = document.createElement("div"), key = document.createElement("span"), text = document.createElement("b");
    key.textContent = label; text.textContent = value; row.append(key, text); return row;
  };
  for (const figure of figures) {
    const svg = figure.querySelector("svg"), seen = data[+figure.dataset.subject];
    const { left, right, width } = svg.dataset;
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", event => {
      const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * width;
      const share = (x - left) / (width - left - right);
      if (share < 0 || share > 1) return hide();
      const ms = share * seen.length, at = Math.min(Math.floor(ms / seen.interval), seen.memory.length - 1);
      for (const other of figures) { const c = other.querySelector(".cross"); c.setAttribute("x1", x); c.setAttribute("x2", x); c.classList.add("on"); }
      const state = seen.states.filter(s => s[0] <= ms).pop();
      const rows = [
        ["at", `${(ms / 1000).toFixed(1)} s`], ["memory", `${seen.memory[at]} /s`], ["Redis", `${seen.redis[at]} /s`], ["database", `${seen.database[at]} /s`],
        ["failed", `${seen.failed[at]} /s`], ["stale", `${seen.stale[at]} /s`], ["median", lasting(seen.p50[at])], ["99th percentile", lasting(seen.p99[at])],
        ["maximum", lasting(seen.max[at])], ["connection", state ? state[1] : "–"], ["breaker", state ? state[2].replace("_", "-") : "–"],
      ];
      tip.replaceChildren(...rows.map(([label, value]) => line(label, value)));
      tip.hidden = false;
      const wide = tip.offsetWidth, room = document.documentElement.clientWidth;
      tip.style.left = `${event.clientX + 16 + wide > room ? event.pageX - wide - 16 : event.pageX + 16}px`;
      tip.style.top = `${event.pageY + 14}px`;
    });
  }
})();
