/** Call a drawing function now, when one of its controls changes, and when light turns to dark. */
const drawings = [];
function connect(place, action, ...controls) {
  const fold = byId(place).closest("details");
  // A chart in a closed fold has no size: it is drawn when the fold opens.
  const draw = () => { if (!fold || fold.open) action(); };
  if (fold) fold.addEventListener("toggle", draw);
  drawings.push(draw);
  controls.filter(byId).forEach((id) => byId(id).addEventListener("change", draw));
}

function growing(kind, draw, button, ...controls) {
  connect(button, draw);
  controls.filter(byId).forEach((id) => byId(id).addEventListener("change", () => {
    shown[kind] = AT_ONCE[kind];
    draw();
  }));
  byId(button).addEventListener("click", () => {
    const place = byId(button).previousElementSibling;
    const before = place.children.length;
    shown[kind] += 2 * AT_ONCE[kind];
    draw();
    const first = place.children[before];  // keyboard focus moves to the first new image
    (first.matches("button") ? first : first.querySelector("button")).focus({ preventScroll: true });
  });
}

if (byId("scatter")) connect("scatter", drawAgreement, "scatter-metric", "scatter-side", "scatter-model");
if (byId("sample-size")) connect("sample-size", drawSampleSize, "size-metric");
if (byId("severity-chart")) connect("severity-chart", drawSeverity, "severity-domain", "severity-model");
if (byId("dumbbell")) connect("dumbbell", drawDumbbell, "dumbbell-domain");
if (byId("diagrams")) connect("diagrams", chooseDiagram, "diagram-set", "diagram-source", "diagram-model");
if (byId("ood-scatter")) connect("ood-scatter", drawObjectsAgreement, "ood-score", "ood-metric");
if (byId("gallery")) growing("gallery", drawGallery, "gallery-more", "gallery-domain", "gallery-model", "gallery-order");
if (byId("object-gallery")) growing("objects", drawObjects, "object-more", "object-name", "object-model", "object-score", "object-order", "object-mask");
if (byId("class-domain")) {
  byId("class-domain").addEventListener("change", () => document.querySelectorAll(".classes").forEach((element) => {
    element.hidden = element.dataset.domain !== valueOf("class-domain");
  }));
}
// A link to a fold opens it.
document.querySelectorAll("a[href^='#']").forEach((link) => link.addEventListener("click", () => {
  const target = byId(link.hash.slice(1));
  if (target && target.matches("details")) target.open = true;
}));
// One after the other, so that the page answers in between.
drawings.forEach((action) => setTimeout(action));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawings.forEach((action) => action()));
byId("viewer").addEventListener("click", (event) => { if (event.target === byId("viewer")) byId("viewer").close(); });

/** Sort a table by the column of the button pressed: numbers from the largest, names from A; again, the other way. */
document.querySelectorAll("table.sortable").forEach((table) => {
  table.querySelectorAll("thead button").forEach((button) => button.addEventListener("click", () => {
    const column = Number(button.dataset.column);
    const head = button.closest("th");
    const first = column === 0 ? "ascending" : "descending";
    const other = column === 0 ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    table.querySelectorAll("[aria-sort]").forEach((cell) => cell.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const cell = (row) => row.cells[column].textContent;
    const compare = column === 0 ? (a, b) => cell(a).localeCompare(cell(b)) : (a, b) => parseFloat(cell(a)) - parseFloat(cell(b));
    const [known, unknown] = [true, false].map((is) => [...table.tBodies[0].rows].filter((row) => column === 0 ? is : !Number.isNaN(parseFloat(cell(row))) === is));
    known.sort((a, b) => (order === "ascending" ? 1 : -1) * compare(a, b));
    table.tBodies[0].append(...known, ...unknown);
  }));
});

/** The section in sight is marked in the contents. */
const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
const inSight = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
  links.forEach((link, id) => (id === entry.target.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
}), { rootMargin: "-20% 0px -70% 0px" });
links.forEach((_, id) => inSight.observe(byId(id)));
