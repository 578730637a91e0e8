(() => {
  const data = JSON.parse(document.getElementById("curves").textContent);
  const frame = document.querySelector(".frame");
  if (!frame || !data.length) return;
  frame.closest(".needs-script").hidden = false;
  const svg = frame.querySelector("svg"), tip = frame.querySelector(".tip");
  const ns = "http://www.w3.org/2000/svg";
  const make = (tag, attributes, text) => {
    const node = document.createElementNS(ns, tag);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const chosen = name => document.querySelector(`input[name=${name}]:checked`).value;
  const short = n => n >= 1e9 ? +(n / 1e9).toPrecision(3) + "B" : n >= 1e6 ? +(n / 1e6).toPrecision(3) + "M"
    : n >= 1e3 ? +(n / 1e3).toPrecision(3) + "k" : String(+n.toPrecision(3));
  const nice = (low, high, want) => {
    const rough = (high - low) / want || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= rough);
    const ticks = [];
    for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-6; t += step) ticks.push(+t.toPrecision(8));
    return ticks;
  };
  let view = null, place = null;

  function draw() {
    const W = svg.clientWidth, H = svg.clientHeight, left = 42, right = 14, top = 12, bottom = 40;
    const column = chosen("x") === "time" ? 1 : 0, log = chosen("y") === "log";
    const xs = data.flatMap(r => r.points.map(p => p[column]));
    const ys = data.flatMap(r => [...r.points.flatMap(p => [p[2], p[3]]), ...r.held.map(p => p[2])]).filter(v => v > 0);
    const x1 = Math.max(...xs) || 1;
    let y0 = Math.min(...ys), y1 = Math.max(...ys);
    if (y1 - y0 < 1e-9) { y1 += .5; y0 = Math.max(y0 - .5, 1e-3); }
    const f = log ? Math.log : v => v;
    const pad = (f(y1) - f(y0)) * .05, low = f(y0) - pad, high = f(y1) + pad;
    const X = v => left + v / x1 * (W - left - right), Y = v => top + (high - f(Math.max(v, 1e-6))) / (high - low) * (H - top - bottom);
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.replaceChildren();
    const yticks = log
      ? [.1, .2, .3, .5, .7, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10, 12, 15, 20].filter(t => t >= y0 * .98 && t <= y1 * 1.02)
      : nice(Math.max(low, 0), high, H > 320 ? 7 : 5);
    for (const t of yticks) {
      svg.append(make("line", { class: "grid", x1: left, x2: W - right, y1: Y(t), y2: Y(t) }));
      svg.append(make("text", { x: left - 7, y: Y(t) + 4, "text-anchor": "end" }, String(t)));
    }
    for (const t of nice(0, x1, W > 600 ? 8 : 4)) {
      svg.append(make("text", { x: X(t), y: H - bottom + 18, "text-anchor": "middle" }, column ? t + " s" : short(t)));
    }
    svg.append(make("text", { x: W - right, y: H - 5, "text-anchor": "end" }, column ? "seconds of training" : "tokens of training"));
    svg.append(make("text", { x: left + 6, y: top + 10 }, "loss, nats a target"));
    for (const run of data) {
      for (const [at, kind] of [[2, "raw"], [3, "smooth"]]) {
        const d = run.points.map((p, i) => `${i ? "L" : "M"}${X(p[column]).toFixed(1)} ${Y(p[at]).toFixed(1)}`).join("");
        const line = make("path", { class: `k${run.k} ${kind}`, d });
        if (kind === "smooth" && run.dash) line.setAttribute("stroke-dasharray", run.dash);
        svg.append(line);
      }
    }
    for (const run of data) {
      const d = run.held.map((p, i) => `${i ? "L" : "M"}${X(p[column]).toFixed(1)} ${Y(p[2]).toFixed(1)}`).join("");
      if (run.held.length > 1) svg.append(make("path", { class: `k${run.k} held`, d }));
      for (const p of run.held) svg.append(make("circle", { class: `k${run.k} held`, cx: X(p[column]), cy: Y(p[2]), r: 4 }));
    }
    view = { W, H, left, right, top, bottom, X, Y, x1, column, marks: make("g", {}) };
    svg.append(view.marks);
    if (place !== null) point(place);
  }

  function point(share) {
    place = Math.min(1, Math.max(0, share));
    const { W, H, left, right, top, bottom, X, Y, x1, column, marks } = view;
    const at = place * x1;
    marks.replaceChildren(make("line", { class: "cursor", x1: X(at), x2: X(at), y1: top, y2: H - bottom }));
    const title = document.createElement("div");
    title.textContent = column ? `${at.toFixed(1)} s` : `${short(at)} tokens`;
    const rows = data.map(run => {
      let best = run.points[0];
      for (const p of run.points) if (Math.abs(p[column] - at) < Math.abs(best[column] - at)) best = p;
      marks.append(make("circle", { class: `k${run.k}`, cx: X(best[column]), cy: Y(best[3]), r: 5 }));
      const row = document.createElement("div"), name = document.createElement("b"), value = document.createElement("span");
      row.className = `k${run.k}`; name.textContent = run.name; value.textContent = best[3].toFixed(3);
      row.append(name, value);
      return row;
    });
    tip.replaceChildren(title, ...rows);
    tip.hidden = false;
    const wide = tip.offsetWidth, x = X(at) + svg.getBoundingClientRect().left - frame.getBoundingClientRect().left;
    tip.style.left = Math.max(4, x + wide + 20 > W ? x - wide - 14 : x + 14) + "px";
  }
  const away = () => { place = null; tip.hidden = true; view.marks.replaceChildren(); };
  svg.addEventListener("pointermove", e => {
    const box = svg.getBoundingClientRect();
    point((e.clientX - box.left - view.left) / (view.W - view.left - view.right));
  });
  svg.addEventListener("pointerleave", away);
  svg.addEventListener("blur", away);
  svg.addEventListener("keydown", e => {
    const step = { ArrowLeft: -.02, ArrowRight: .02 }[e.key];
    if (step) { point((place ?? (step > 0 ? -.02 : 1.02)) + step); e.preventDefault(); }
    if (e.key === "Escape") away();
  });
  document.querySelectorAll(".tools input").forEach(input => input.addEventListener("change", draw));
  new ResizeObserver(draw).observe(svg);
})();
