const AT_ONCE = { gallery: 6, objects: 18 };
const shown = { gallery: AT_ONCE.gallery, objects: AT_ONCE.objects };
const COUNT = new Intl.NumberFormat("en");

/** Sort by a score, entries without one last. */
function ordered(entries, order, score) {
  if (order === "name" || !order) return entries;
  const sign = order === "worst" ? 1 : -1;
  const [known, unknown] = [entries.filter((e) => score(e) != null), entries.filter((e) => score(e) == null)];
  return [...known.sort((a, b) => sign * (score(a) - score(b))), ...unknown];
}

function stack(sources, alt, kind) {
  const [first, ...over] = sources.filter(Boolean);
  const images = [make("img", { src: first, alt, className: kind === "map" ? "map" : "", decoding: "async" }), ...over.map((src) => make("img", { src, alt: "" }))];
  return make("span", { className: `stack ${kind}` }, ...images);
}

function view(name, sources, alt, kind, heading, text, wide) {
  if (!sources[0]) return make("div", { className: "view" }, make("span", { className: "nothing", textContent: "not saved" }), make("span", { className: "name", textContent: name }));
  const button = make("button", { type: "button", className: `view${wide ? " wide" : ""}` }, stack(sources, alt, kind), make("span", { className: "name", textContent: name }));
  button.addEventListener("click", () => openViewer(name ? `${heading}: ${name}` : heading, stack(sources, alt, kind), text));
  return button;
}

function openViewer(heading, picture, text) {
  byId("viewer-title").textContent = heading;
  const [image] = picture.children;
  byId("viewer-picture").style.setProperty("--aspect", image.naturalWidth ? image.naturalWidth / image.naturalHeight : 2);
  image.addEventListener("load", () => byId("viewer-picture").style.setProperty("--aspect", image.naturalWidth / image.naturalHeight));
  byId("viewer-picture").replaceChildren(picture);
  byId("viewer-text").textContent = text;
  byId("viewer").showModal();
}

function drawGallery() {
  const [domain, model, order] = ["gallery-domain", "gallery-model", "gallery-order"].map(valueOf);
  const ofDomain = DATA.gallery.pictures.filter((picture) => !domain || picture.domain === domain);
  const pictures = ordered(ofDomain, order, (picture) => picture.models[model] && picture.models[model].miou);
  const visible = pictures.slice(0, shown.gallery);
  byId("gallery").replaceChildren(...visible.map((picture) => card(picture, model)));
  byId("gallery-count").textContent = `${COUNT.format(visible.length)} of ${COUNT.format(pictures.length)} pictures`;
  byId("gallery-more").hidden = visible.length === pictures.length;
}

function card(picture, model) {
  const result = picture.models[model];
  const source = picture.id.replace(new RegExp(`^${picture.domain}_\\d+_`), "");
  const heading = `${title(picture.domain)}, ${source}`;
  const score = result ? `mIoU ${num(result.miou, 1)} %, ${num(result.accuracy, 1)} % of the pixels right` : "";
  const text = [score && `${DATA.labels[model]}: ${score}.`, picture.prompt && `Prompt: “${picture.prompt}”.`, picture.seed && `Seed ${picture.seed}.`].filter(Boolean).join(" ");
  const of = (name) => `${name} of ${source}, ${picture.domain}`;
  const views = [
    view("mask", [picture.mask], of("mask"), "map", heading, text),
    view("original", [picture.original], of("original photograph"), "photo", heading, text),
    view("generated", [picture.generated], of("generated picture"), "photo", heading, text, true),
  ];
  if (result) {
    views.push(
      view("prediction", [result.prediction], `prediction of ${DATA.labels[model]} on ${source}`, "map", heading, text),
      view("errors", [picture.generated, result.errors], `pixels that ${DATA.labels[model]} gets wrong on ${source}`, "errors", heading, text),
    );
  }
  const head = make("header", {}, make("h3", { textContent: heading }));
  if (result) head.append(make("span", { className: "score" }, "mIoU ", make("b", { textContent: num(result.miou, 1) }), ` % · ${num(result.accuracy, 1)} % of the pixels right`));
  const article = make("article", { className: "shot" }, head, make("div", { className: "views" }, ...views));
  if (picture.prompt) article.append(make("p", { className: "prompt", textContent: `“${picture.prompt}”` }));
  article.dataset.domain = picture.domain;
  article.dataset.miou = result ? result.miou : "";
  return article;
}

function drawObjects() {
  const [object, model, score, order] = ["object-name", "object-model", "object-score", "object-order"].map(valueOf);
  const auroc = (picture) => picture.models[model] && picture.models[model][score];
  const ofObject = DATA.objects.pictures.filter((picture) => !object || picture.object === object);
  const pictures = ordered(ofObject, order, auroc);
  const visible = pictures.slice(0, shown.objects);
  byId("object-gallery").replaceChildren(...visible.map((picture) => {
    const value = auroc(picture);
    const text = [`${title(picture.object)}, ${num(picture.share, 1)} % of the frame.`, value == null ? "" : `AUROC of ${DATA.labels[model]}, ${words(score)}: ${num(value, 1)} %.`].join(" ");
    const sources = byId("object-mask").checked ? [picture.image, picture.mask] : [picture.image];
    const button = view("", sources, `${picture.object}, picture ${picture.id}`, "photo", picture.id, text);
    button.setAttribute("aria-label", text);
    button.querySelector(".name").replaceChildren(make("b", { textContent: picture.object }), value == null ? `${num(picture.share, 1)} % of the frame` : `AUROC ${num(value, 1)} %`);
    button.dataset.object = picture.object;
    button.dataset.auroc = value == null ? "" : value;
    return button;
  }));
  byId("object-count").textContent = `${COUNT.format(visible.length)} of ${COUNT.format(pictures.length)} pictures`;
  byId("object-more").hidden = visible.length === pictures.length;
}
