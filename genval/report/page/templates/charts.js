"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const valueOf = (id) => (byId(id) ? byId(id).value : "");
const title = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const words = (text) => text.replaceAll("_", " ");
const num = (value, digits) => (value == null ? "–" : value.toFixed(digits).replace("-", "−"));
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** A name as Plotly shows it unchanged: Plotly reads links, bold text and %{templates} in its texts. */
const plain = (text) => String(text).replace(/[&<>%$]/g, (character) => `&#${character.charCodeAt(0)};`);

/** An element with properties and children; text is never read as markup. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child != null));
  return element;
}

function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
  if (options.some(([value]) => value === before)) select.value = before;
}

const touch = matchMedia("(hover: none)").matches;
const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" };
// Okabe and Ito's palette, each with a symbol and a dash of its own: colour never says anything alone.
const LINES = [
  ["#0072b2", "#56b4e9", "circle", "solid"],
  ["#d55e00", "#ff8a3d", "square", "dash"],
  ["#009e73", "#33c39b", "diamond", "dot"],
  ["#b1568e", "#dd8fbd", "triangle-up", "dashdot"],
  ["#b87900", "#e69f00", "cross", "longdash"],
  ["#16191d", "#eceae5", "star", "longdashdot"],
];

function axis(text, more = {}) {
  return {
    title: { text, font: { size: 12.5, color: colour("soft") }, standoff: 8 },
    gridcolor: colour("line"), linecolor: colour("rule"), zeroline: false, ticks: "", automargin: true,
    tickfont: { size: 11.5, color: colour("soft") }, ...more,
  };
}

function layout(more) {
  return {
    margin: { l: 44, r: 12, t: 8, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    dragmode: touch ? false : "zoom", hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, color: colour("ink"), size: 12.5 },
    hoverlabel: { bgcolor: colour("ink"), bordercolor: colour("ink"), font: { family: getComputedStyle(document.body).fontFamily, color: colour("paper"), size: 13 }, align: "left" },
    ...more,
  };
}

function draw(element, traces, more) {
  Plotly.react(element, traces, layout(more), CONFIG);
  element.setAttribute("role", "img");
}

/** A card with a heading and a place for a chart; kept between draws, so that the page does not jump. */
function facet(place, key, heading, side) {
  let card = [...place.children].find((child) => child.dataset.key === key);
  if (!card) {
    card = make("div", { className: "facet" }, make("header", {}, make("h3"), make("span", { className: "small" })), make("div", { className: "plot" }));
    card.dataset.key = key;
    place.append(card);
  }
  card.querySelector("h3").textContent = heading;
  card.querySelector(".small").textContent = side;
  return card.querySelector(".plot");
}

const ends = (entry) => (entry.low == null ? [entry.value, entry.value] : [entry.low, entry.high]);

/** Facets of one metric share their axes, so sizes can be compared between them. */
function commonRange(comparisons, sides) {
  const values = comparisons.flatMap((c) => c.models.flatMap((row) => [...sides, "true"].filter((s) => row[s]).flatMap((s) => ends(row[s]))));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const gap = 0.05 * (high - low || 1);
  return [Math.max(0, low - gap), high + gap];
}

/** A facet per comparison: a predictor's score across, the reference score up, one dot per model. */
function drawScatter(place, comparisons, side, text, highlighted) {
  const known = ["synthetic", "clear", "corrupted"].includes(side);
  const shade = colour(known ? side : "other");
  const across = { clear: "clear images", corrupted: "corrupted images" }[side] || `${DATA.sideNames[side] || "generated"} images`;
  const acrossTitle = DATA.labelFree.includes(side) ? `${DATA.sideNames[side]}, %` : `${text} of ${across}, %`;
  const present = Object.entries(comparisons).filter(([, comparison]) => comparison);
  const keys = present.map(([name]) => name);
  [...place.children].filter((child) => !keys.includes(child.dataset.key)).forEach((child) => child.remove());
  const range = commonRange(present.map(([, comparison]) => comparison), [side]);
  for (const [name, comparison] of present) {
    const rows = comparison.models.filter((row) => row[side] && row.true);
    const fit = comparison.correlation[side];
    const p = fit && fit.pearson;
    const corrected = p && p.low != null ? `; corrected ${num(p.corrected, 2)} [${num(p.low, 2)}, ${num(p.high, 2)}]` : "";
    const note = p ? `observed r ${num(p.value, 2)}${corrected}` : "no results";
    const element = facet(place, name, title(name), note);
    const strong = rows.map((row) => !highlighted || row.model === highlighted);
    const spread = (axisSide) => ({
      type: "data", symmetric: false, thickness: 1, width: 0, color: shade + "66",
      array: rows.map((row) => ends(row[axisSide])[1] - row[axisSide].value),
      arrayminus: rows.map((row) => row[axisSide].value - ends(row[axisSide])[0]),
    });
    const chosen = rows.find((row) => row.model === highlighted);
    draw(element, [
      { x: range, y: range, mode: "lines", line: { color: colour("rule"), width: 1, dash: "4px,4px" }, hoverinfo: "skip" },
      {
        x: rows.map((row) => row[side].value), y: rows.map((row) => row.true.value), mode: "markers", error_x: spread(side), error_y: spread("true"),
        customdata: rows.map((row) => [plain(DATA.labels[row.model]) + (DATA.symbols[DATA.families[row.model]] ? `, ${DATA.families[row.model]}` : ""), ends(row[side]), ends(row.true)].flat()),
        marker: {
          size: rows.map((row) => (row.model === highlighted ? 13 : 9)), opacity: strong.map((is) => (is ? 1 : 0.45)),
          color: rows.map((row) => (row.model === highlighted ? colour("bright") : shade)), line: { width: 1.5, color: colour("card") },
          symbol: rows.map((row) => (DATA.symbols[DATA.families[row.model]] || "circle") + (side === "clear" ? "-open" : "")),
        },
        hovertemplate: `<b>%{customdata[0]}</b><br>${DATA.sideNames[side]} %{x:.1f} [%{customdata[1]:.1f}, %{customdata[2]:.1f}]<br>reference %{y:.1f} [%{customdata[3]:.1f}, %{customdata[4]:.1f}]<extra></extra>`,
      },
    ], {
      xaxis: axis(acrossTitle, { range, constrain: "domain" }),
      yaxis: axis(`${text} of reference images, %`, { range, scaleanchor: "x", constrain: "domain" }),
      annotations: chosen ? [{ x: chosen[side].value, y: chosen.true.value, text: `<b>${plain(DATA.labels[chosen.model])}</b>`, showarrow: false, yshift: 17, font: { color: colour("bright") } }] : [],
    });
    element.setAttribute("aria-label", `${title(name)}: ${text} of ${rows.length} segmenters, ${DATA.sideNames[side]} against reference, ${note}`);
  }
}

function drawAgreement() {
  const metric = valueOf("scatter-metric");
  const text = byId("scatter-metric").selectedOptions[0].textContent;
  drawScatter(byId("scatter"), DATA.scatter[metric], valueOf("scatter-side"), text, valueOf("scatter-model"));
}

function drawObjectsAgreement() {
  const [score, metric] = [valueOf("ood-score"), valueOf("ood-metric")];
  const sets = Object.entries(DATA.ood).map(([name, byScore]) => [name, byScore && byScore[score] && byScore[score][metric]]);
  drawScatter(byId("ood-scatter"), Object.fromEntries(sets), "synthetic", byId("ood-metric").selectedOptions[0].textContent, "");
}

function drawSampleSize() {
  const metric = valueOf("size-metric");
  const pick = { pearson: (at) => at.width, tau: (at) => at.low, regret: (at) => at.high }[metric];
  const text = {
    pearson: "width of the 95 % interval of r",
    tau: "Kendall’s tau, 5 % quantile",
    regret: "regret, 95 % quantile, points of reference mIoU",
  }[metric];
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const curves = Object.entries(DATA.sampleSize).filter(([, curve]) => curve);
  const narrow = byId("sample-size").clientWidth < 560;
  const settled = { tau: "settles_ranking", regret: "settles_choice" }[metric];
  const traces = curves.map(([name, curve], index) => {
    const [light, bright, symbol, dash] = LINES[index % LINES.length];
    return {
      x: curve.images, y: curve[metric].map(pick), name: plain(name), mode: "lines+markers", line: { color: dark ? bright : light, width: 2.2, dash },
      marker: {
        symbol, color: dark ? bright : light, line: { width: 2, color: curve.images.map((n) => colour(settled && n === curve[settled] ? "ink" : "card")) },
        size: curve.images.map((n) => (settled && n === curve[settled] ? 14 : 8)),
      },
      hovertemplate: `<b>${plain(name)}</b><br>%{x} images: %{y:.2f}<extra></extra>`,
    };
  });
  const line = curves.length && { tau: curves[0][1].settled_tau, regret: curves[0][1].settled_regret }[metric];
  const sizes = [...new Set(curves.flatMap(([, curve]) => curve.images))].sort((a, b) => a - b);
  draw(byId("sample-size"), traces, {
    margin: { l: 52, r: 16, t: 34, b: 44 }, showlegend: true,
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { size: 13, color: colour("ink") }, itemclick: false, itemdoubleclick: false },
    xaxis: axis("generated images per condition", { type: "log", tickvals: sizes, ticktext: sizes.map(String) }),
    yaxis: axis(narrow ? "" : text, { rangemode: "tozero" }),
    shapes: line ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: line, y1: line, line: { color: colour("soft"), width: 1, dash: "4px,4px" } }] : [],
    annotations: line ? [{ xref: "paper", x: 1, y: line, text: "settled", showarrow: false, xanchor: "right", yshift: 9, font: { size: 12, color: colour("soft") } }] : [],
  });
  byId("sample-size").setAttribute("aria-label", `${text} against the number of generated images, one line per condition`);
}

/** mIoU against the strength of the condition: one line per model. */
function drawSeverity() {
  const curve = DATA.severity[valueOf("severity-domain")];
  const highlighted = valueOf("severity-model");
  const models = Object.keys(curve.miou).sort((a, b) => (a === highlighted) - (b === highlighted));
  draw(byId("severity-chart"), models.map((model) => {
    const strong = model === highlighted;
    const points = curve.miou[model];
    const shade = colour(strong ? "bright" : "synthetic");
    return {
      x: curve.strengths, y: points.map((point) => point.value), mode: "lines+markers", opacity: strong || !highlighted ? 1 : 0.4,
      line: { color: shade, width: strong ? 3 : 1.5 }, marker: { size: strong ? 9 : 6 },
      customdata: points.map((point) => ends(point)),
      hovertemplate: `<b>${plain(DATA.labels[model])}</b><br>strength %{x}: %{y:.1f} [%{customdata[0]:.1f}, %{customdata[1]:.1f}]<extra></extra>`,
    };
  }), {
    margin: { l: 52, r: 16, t: 12, b: 44 },
    xaxis: axis("strength of the condition", { tickvals: curve.strengths, range: [curve.strengths[0] - 0.03, 1.03] }),
    yaxis: axis("mIoU, %", { rangemode: "tozero" }),
    shapes: curve.min_miou == null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: curve.min_miou, y1: curve.min_miou, line: { color: colour("soft"), width: 1, dash: "4px,4px" } }],
  });
  byId("severity-chart").setAttribute("aria-label", `mIoU of ${models.length} segmenters against the strength of ${valueOf("severity-domain")}`);
}

// Symbols of the temperatures of the hardest images: in the chart, and as a character in its key.
const HARDEST = [["diamond", "◆"], ["square", "■"], ["triangle-up", "▲"]];

/** ECE of each model before and after: one line per model, sorted by the ECE before. */
function drawDumbbell() {
  const { models, improved } = DATA.scaling[valueOf("dumbbell-domain")];
  const rows = models.filter((row) => row.before != null && row.synthetic != null).sort((a, b) => a.before - b.before);
  const hardest = Object.keys(improved).filter((source) => source.startsWith("synthetic, ") && improved[source].models);
  const ends = (row) => {
    const values = ["before", "synthetic", ...hardest].map((source) => row[source]).filter((value) => value != null);
    return [Math.min(...values), Math.max(...values), null];
  };
  const names = rows.map((row) => plain(DATA.labels[row.model]));
  const dots = (key, text, marker) => ({
    x: rows.map((row) => row[key]), y: names, name: plain(text), mode: "markers", marker: { size: 11, ...marker },
    hovertemplate: `<b>%{y}</b><br>${plain(text)}: %{x:.2f} %<extra></extra>`,
  });
  const element = byId("dumbbell");
  element.style.height = `${56 + 28 * rows.length}px`;
  const key = [["before", "clear"], ["after, temperature of generated images", "synthetic"]].map(([text, side]) => make("span", { className: side }, make("i"), text));
  const symbol = (index) => HARDEST[index % HARDEST.length];
  const ofHardest = (source) => source.replace("synthetic, ", "after, temperature of the ");
  key.push(...hardest.map((source, index) => make("span", {}, make("b", { className: "symbol", textContent: symbol(index)[1] }), ofHardest(source))));
  byId("dumbbell-key").replaceChildren(...key);
  draw(element, [
    {
      x: rows.flatMap(ends), y: names.flatMap((name) => [name, name, null]), mode: "lines",
      line: { color: colour("rule"), width: 3 }, hoverinfo: "skip", showlegend: false,
    },
    dots("before", "before", { symbol: "circle-open", color: colour("clear"), line: { width: 2.5 } }),
    dots("synthetic", "after", { color: colour("synthetic") }),
    ...hardest.map((source, index) => dots(source, ofHardest(source), { symbol: symbol(index)[0], color: colour("bright") })),
  ], {
    margin: { l: 8, r: 16, t: 4, b: 44 },
    xaxis: axis("ECE on reference images, %", { rangemode: "tozero" }), yaxis: axis("", { gridcolor: "rgba(0,0,0,0)", type: "category" }),
  });
  element.setAttribute("aria-label", `ECE of ${rows.length} segmenters before and after temperature scaling`);
}

/** What a folder of results is called in a sentence: `Cityscapes_{domain}` is a generated set. */
function setName(name) {
  const text = words(name).replace(/ all(?=$| hardest)/, "").replace(/ hardest([\d.]+)$/, ", hardest $1 %");
  return text.replace(/^Cityscapes corrupt /, "corrupted ").replace(/^Cityscapes clean/, "clear").replace(/^Cityscapes /, "generated ");
}

function chooseDiagram() {
  const only = (key, entries) => [...new Set(entries.map((entry) => entry[key]))];
  const tested = only("tested_on", DATA.diagrams);
  fill(byId("diagram-set"), tested.map((name) => [name, setName(name)]));
  const ofSet = DATA.diagrams.filter((entry) => entry.tested_on === valueOf("diagram-set"));
  const key = (entry) => `${entry.calibrated_on}/${entry.method}`;
  const name = (entry) => (entry.calibrated_on ? `${setName(entry.calibrated_on)}, ${words(entry.method)}` : "none (uncalibrated)");
  fill(byId("diagram-source"), [...new Map(ofSet.map((entry) => [key(entry), name(entry)])).entries()]);
  const ofSource = ofSet.filter((entry) => key(entry) === valueOf("diagram-source"));
  fill(byId("diagram-model"), only("model", ofSource).map((model) => [model, DATA.labels[model]]));
  drawDiagrams(ofSource.find((entry) => entry.model === valueOf("diagram-model")));
}

function drawDiagrams(entry) {
  const width = 1 / DATA.binEdges.length;
  const middles = DATA.binEdges.map((edge) => edge + width / 2);
  const place = byId("diagrams");
  [...place.children].filter((child) => !entry.panels[child.dataset.key]).forEach((child) => child.remove());
  for (const [key, bins] of Object.entries(entry.panels)) {
    const element = facet(place, key, title(key), `ECE ${num(bins.ece, 2)} %`);
    const gap = bins.accuracy.map((value, index) => (value == null ? null : bins.confidence[index] - value));
    const bar = (y, more) => ({ type: "bar", x: middles, y, width: width * 0.94, ...more });
    draw(element, [
      bar(bins.accuracy, { marker: { color: colour("synthetic") }, name: "accuracy", customdata: bins.accuracy.map((_, i) => [bins.confidence[i], bins.pixels[i]]), hovertemplate: "confidence %{customdata[0]:.3f}<br>accuracy %{y:.3f}<br>share of pixels %{customdata[1]:.2%}<extra></extra>" }),
      bar(gap.map((value) => (value > 0 ? value : null)), { base: bins.accuracy, marker: { color: "rgba(0,0,0,0)", pattern: { shape: "/", fgcolor: colour("bright"), size: 6, solidity: 0.35 }, line: { color: colour("bright"), width: 1 } }, hoverinfo: "skip" }),
      { x: [0, 1], y: [0, 1], mode: "lines", line: { color: colour("ink"), width: 1.2, dash: "4px,4px" }, hoverinfo: "skip" },
      bar(bins.pixels, { yaxis: "y2", marker: { color: colour("clear") }, hoverinfo: "skip" }),
    ], {
      barmode: "overlay", bargap: 0, margin: { l: 48, r: 10, t: 8, b: 42 },
      xaxis: axis("confidence", { range: [0, 1], anchor: "y2", tickvals: [0, 0.25, 0.5, 0.75, 1] }),
      yaxis: axis("accuracy", { range: [0, 1], domain: [0.27, 1], tickvals: [0, 0.25, 0.5, 0.75, 1] }),
      yaxis2: axis("pixels", { range: [0, 1], domain: [0, 0.19], tickvals: [0, 1], tickformat: ".0%" }),
    });
    element.setAttribute("aria-label", `Reliability of ${DATA.labels[entry.model]} on ${setName(entry.tested_on)} ${key}: ECE ${num(bins.ece, 2)} percent`);
  }
}
