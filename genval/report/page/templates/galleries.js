const AT_ONCE = matchMedia("(max-width: 720px)").matches ? { gallery: 3, objects: 6 } : { gallery: 6, objects: 18 };
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

function openViewer(heading, frame, text) {
  byId("viewer-title").textContent = heading;
  const [image] = frame.children;
  byId("viewer-image").style.setProperty("--aspect", image.naturalWidth ? image.naturalWidth / image.naturalHeight : 2);
  image.addEventListener("load", () => byId("viewer-image").style.setProperty("--aspect", image.naturalWidth / image.naturalHeight));
  byId("viewer-image").replaceChildren(frame);
  byId("viewer-text").textContent = text;
  byId("viewer").showModal();
}

function drawGallery() {
  const [domain, model, order] = ["gallery-domain", "gallery-model", "gallery-order"].map(valueOf);
  const ofDomain = DATA.gallery.images.filter((item) => !domain || item.domain === domain);
  const images = ordered(ofDomain, order, (item) => item.models[model] && item.models[model].miou);
  const visible = images.slice(0, shown.gallery);
  byId("gallery").replaceChildren(...visible.map((item) => card(item, model)));
  byId("gallery-count").textContent = `${COUNT.format(visible.length)} of ${COUNT.format(images.length)} images`;
  byId("gallery-more").hidden = visible.length === images.length;
}

function card(item, model) {
  const result = item.models[model];
  const source = item.id.replace(new RegExp(`^${item.domain}_\\d+_`), "");
  const heading = `${title(item.domain)}, ${source}`;
  const score = result ? `mIoU ${num(result.miou, 1)} %, ${num(result.accuracy, 1)} % of the pixels right` : "";
  const text = [score && `${DATA.labels[model]}: ${score}.`, item.prompt && `Prompt: “${item.prompt}”.`, item.seed && `Seed ${item.seed}.`].filter(Boolean).join(" ");
  const of = (name) => `${name} of ${source}, ${item.domain}`;
  const views = [
    view("mask", [item.mask], of("mask"), "map", heading, text),
    view("original", [item.original], of("original image"), "photo", heading, text),
    view("generated", [item.generated], of("generated image"), "photo", heading, text, true),
  ];
  if (result) {
    views.push(
      view("prediction", [result.prediction], `prediction of ${DATA.labels[model]} on ${source}`, "map", heading, text),
      view("errors", [item.generated, result.errors], `pixels that ${DATA.labels[model]} gets wrong on ${source}`, "errors", heading, text),
    );
  }
  const head = make("header", {}, make("h3", { textContent: heading }));
  if (result) head.append(make("span", { className: "score" }, "mIoU ", make("b", { textContent: num(result.miou, 1) }), ` % · ${num(result.accuracy, 1)} % of the pixels right`));
  const article = make("article", { className: "shot" }, head, make("div", { className: "views" }, ...views));
  if (item.prompt) article.append(make("p", { className: "prompt", textContent: `“${item.prompt}”` }));
  article.dataset.domain = item.domain;
  article.dataset.miou = result ? result.miou : "";
  return article;
}

function drawObjects() {
  const [object, model, score, order] = ["object-name", "object-model", "object-score", "object-order"].map(valueOf);
  const auroc = (item) => item.models[model] && item.models[model][score];
  const ofObject = DATA.objects.images.filter((item) => !object || item.object === object);
  const images = ordered(ofObject, order, auroc);
  const visible = images.slice(0, shown.objects);
  byId("object-gallery").replaceChildren(...visible.map((item) => {
    const value = auroc(item);
    const text = [`${title(item.object)}, ${num(item.share, 1)} % of the frame.`, value == null ? "" : `AUROC of ${DATA.labels[model]}, ${words(score)}: ${num(value, 1)} %.`].join(" ");
    const sources = byId("object-mask").checked ? [item.image, item.mask] : [item.image];
    const button = view("", sources, `${item.object}, image ${item.id}`, "photo", item.id, text);
    button.setAttribute("aria-label", text);
    button.querySelector(".name").replaceChildren(make("b", { textContent: item.object }), value == null ? `${num(item.share, 1)} % of the frame` : `AUROC ${num(value, 1)} %`);
    button.dataset.object = item.object;
    button.dataset.auroc = value == null ? "" : value;
    return button;
  }));
  byId("object-count").textContent = `${COUNT.format(visible.length)} of ${COUNT.format(images.length)} images`;
  byId("object-more").hidden = visible.length === images.length;
}
