"""The report's page: what is chosen, how it is encoded, which parts are reported missing, and the page in a browser."""

import base64
import dataclasses
import doctest
import html as markup
import importlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import Browser, find_chromium
from page_world import example_correlation, write_world
from PIL import Image
from script_runs import run_script

from genval.datasets import find_items
from genval.metrics.calibration import BINS, binned_ece
from genval.report.ood_comparison import METRICS
from genval.report.page import PageSources, collect, render_page, write_page
from genval.report.page.content import PageContent
from genval.report.page.encoding import OUTLINE, TINT, WRONG, class_map, error_map, object_map, photograph, shrink
from genval.report.page.gallery import GalleryLimits, collect_gallery
from genval.report.page.provenance import collect_provenance, command_of
from genval.report.page.reliability import collect_diagrams, diagram_of_bins
from genval.report.page.render import MAX_BYTES
from genval.report.page.variables import short_labels
from genval.report.predictors import Generator, list_predictors
from genval.report.schema import Report, select_generators
from genval.runtime.errors import GenValError
from genval.runtime.files import write_json, write_png
from genval.runtime.paths import REPO_ROOT

MODELS = ("good", "hf:some/folder/poor")
LIMITS = GalleryLimits(images=4, models=2, width=32)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    sources = write_world(tmp_path_factory.mktemp("page"))
    write_json(sources.report / "correlation.json", example_correlation(MODELS, ("night", "fog")))
    return sources


@pytest.fixture(scope="module")
def page(sources):
    return write_page(sources.report / "index.html", collect(sources, None, LIMITS))


def decode(uri):
    header, data = uri.split(",", 1)
    return header, Image.open(io.BytesIO(base64.b64decode(data)))


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def test_maps_keep_their_classes_and_photographs_their_colours():
    train_ids = np.array([[0, 13, 255, 18]], np.uint8).repeat(8, 0).repeat(8, 1)
    header, entry = decode(class_map(train_ids, 16))
    assert header == "data:image/png;base64" and entry.size == (16, 4)
    assert np.array_equal(np.asarray(entry), shrink(train_ids, 16))
    assert np.asarray(entry.convert("RGB"))[0, 5].tolist() == [0, 0, 142]  # Cityscapes' colour of cars
    image = np.full((20, 40, 3), (200, 60, 20), np.uint8)
    header, entry = decode(photograph(image, 10))
    assert header == "data:image/jpeg;base64" and entry.size == (10, 5)
    assert np.abs(np.asarray(entry).astype(int) - (200, 60, 20)).max() < 8
    assert decode(photograph(image, 400))[1].size == (40, 20)


def test_the_error_map_shows_wrong_pixels_and_not_unlabelled_ones():
    labels, predicted = np.array([[0, 1, 255, 255]], np.uint8), np.array([[0, 2, 0, 255]], np.uint8)
    pixels = np.asarray(decode(error_map(labels, predicted, 8))[1].convert("RGBA"))[0]
    assert pixels[0, 3] == 0 and tuple(pixels[1]) == WRONG
    assert tuple(pixels[2]) == tuple(pixels[3]) and tuple(pixels[2]) not in (tuple(pixels[0]), WRONG)


def test_an_object_has_an_outline_and_a_tint():
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    pixels = np.asarray(decode(object_map(mask, 20))[1].convert("RGBA"))
    assert tuple(pixels[5, 5]) == OUTLINE and tuple(pixels[10, 10]) == TINT and pixels[4, 4, 3] == 0
    assert (pixels[..., 3] > 0).sum() == 100


def test_half_of_the_gallery_is_the_worst_and_half_an_even_spread(tmp_path):
    write_world(tmp_path, images=8, domains=("fog",))
    limits = dataclasses.replace(LIMITS, images=4)
    gallery = collect_gallery(tmp_path / "generated", ["fog"], tmp_path / "eval", limits)
    everything = dataclasses.replace(LIMITS, images=8)
    scores = {
        entry["id"]: np.mean([of_model["miou"] for of_model in entry["models"].values()])
        for entry in collect_gallery(tmp_path / "generated", ["fog"], tmp_path / "eval", everything)["images"]
    }
    shown = [entry["id"] for entry in gallery["images"]]
    assert gallery["domains"] == [{"name": "fog", "images": 8, "shown": 4}]
    assert set(sorted(scores, key=scores.get)[:2]) <= set(shown)
    items = [item.id for item in find_items("Cityscapes_fog", generated_dir=tmp_path / "generated")]
    assert {items[0], items[2]} <= set(shown)  # 8 items, 4 places: every second
    assert gallery["models"] == ["good", "hf:some/folder/poor"]  # the better one first


def test_the_gallery_stays_within_its_budget_and_takes_from_every_domain(sources):
    whole = collect_gallery(sources.generated, ["fog", "night"], sources.evaluated, LIMITS)
    size = len(json.dumps(whole["images"]))
    small = dataclasses.replace(LIMITS, characters=size // 2)
    half = collect_gallery(sources.generated, ["fog", "night"], sources.evaluated, small)
    assert len(json.dumps(half["images"])) <= 1.1 * size / 2
    counts = [entry["shown"] for entry in half["domains"]]
    assert sum(counts) == len(half["images"]) < 8 and max(counts) - min(counts) <= 1 and min(counts) > 0


def test_a_prediction_of_another_size_is_named(tmp_path):
    write_world(tmp_path, images=1, models=("good",), domains=("fog",))
    path = next((tmp_path / "eval").rglob("predictions/*.png"))
    write_png(path, np.zeros((8, 16), np.uint8))
    with pytest.raises(GenValError, match=r"expected one size.*relis/eval\.py"):
        collect_gallery(tmp_path / "generated", ["fog"], tmp_path / "eval", LIMITS)


def test_a_diagram_holds_what_the_ece_is_made_of():
    generator = np.random.default_rng(1)
    pixels = generator.integers(1, 1000, 15)
    pixels[3] = 0
    right = (pixels * generator.random(15)).astype(int)
    confidence = pixels * generator.random(15)
    lists = {"pixels": pixels.tolist(), "right": right.tolist(), "confidence": confidence.tolist()}
    diagram = diagram_of_bins(lists)
    assert diagram["accuracy"][3] is None and diagram["confidence"][3] is None
    gaps = [
        share * abs(accuracy - sure)
        for share, accuracy, sure in zip(*(diagram[key] for key in ("pixels", "accuracy", "confidence")), strict=True)
        if share
    ]
    assert sum(gaps) == pytest.approx(float(binned_ece(right, pixels, confidence)), abs=1e-12)


def test_a_scaling_file_of_something_else_is_refused(tmp_path):
    write_json(tmp_path / "m/ACDC_fog/from_x/vanilla_ece.json", {"model": "m"})
    with pytest.raises(
        GenValError, match=r"vanilla_ece\.json: .* It is not a file of relis/eval_calibration_clustering"
    ):
        collect_diagrams(tmp_path / "none", tmp_path)
    write_json(tmp_path / "errors/m/ACDC_fog.json", [])
    with pytest.raises(GenValError, match=r"ACDC_fog\.json: .* It is not a file of relis/eval_calibration\.py"):
        collect_diagrams(tmp_path / "errors", tmp_path / "none")


def test_a_command_leaves_out_what_its_preset_gives():
    settings = {"script": "ControlNet/style_transfer", "preset": "mini", "domain": "a dust storm", "control_scale": 1.5}
    settings |= {"seed": 3, "skip_bad": True, "lora": None, "base_hash": "12", "domain_text": "in dust", "limit": 8}
    expected = "python ControlNet/style_transfer.py --preset mini --domain 'a dust storm' --seed 3 --skip_bad"
    assert command_of(settings) == expected
    assert "--control_scale 1.5" in command_of(settings | {"preset": None})


def test_results_that_are_newer_than_the_comparison_are_warned_of(sources):
    content = collect(sources, None, LIMITS)
    now = content.provenance["weights"][f"segmenter {MODELS[0]}"]
    assert len(now) == 1
    for made, warned in ((now[0], False), ("an earlier model in 32-true", True)):
        made_by = {MODELS[0]: made, "a segmenter whose results are not here": "x in 32-true"}
        newer = dataclasses.replace(content, report=dataclasses.replace(content.report, made_by=made_by))
        assert bool(newer.warnings) == warned
        assert ("was evaluated again after this comparison" in render_page(newer)) == warned


def test_runs_with_other_weights_or_versions_are_warned_of(tmp_path):
    for domain, weights, version in (("fog", "aa", "1"), ("night", "bb", "2")):
        settings = {"script": "ControlNet/style_transfer", "domain": domain, "controlnet_hash": weights}
        write_json(tmp_path / domain / "settings.json", {"settings": settings, "versions": {"torch": version}})
    provenance = collect_provenance(tmp_path, tmp_path / "none")
    assert [run["command"].split()[-1] for run in provenance["runs"]] == ["fog", "night"]
    assert len(provenance["warnings"]) == 2
    assert "torch" in provenance["warnings"][0] and "aa, bb" in provenance["warnings"][1]


@pytest.mark.parametrize("name", ["finetuned", "provenance", "reliability", "render", "variables"])
def test_examples_in_docstrings_hold(name):
    outcome = doctest.testmod(importlib.import_module(f"genval.report.page.{name}"))
    assert outcome.attempted and not outcome.failed


def test_short_names_tell_models_apart():
    models = ["hf:a/upernet", "mmseg:x.py,b/upernet.pth", "SwinLarge", "hf:a/segformer"]
    assert short_labels(models) == {
        "hf:a/upernet": "hf:a/upernet",
        "mmseg:x.py,b/upernet.pth": "mmseg:x.py,b/upernet.pth",
        "SwinLarge": "SwinLarge",
        "hf:a/segformer": "segformer",
    }


def test_nothing_to_show_is_an_error_with_a_command(tmp_path):
    nothing = PageSources(
        **dict.fromkeys(("report", "generated", "evaluated", "errors", "scaling", "objects", "ood"), tmp_path)
    )
    with pytest.raises(GenValError, match=r"nothing to report.*Run: python report/correlate\.py"):
        collect(nothing, None, LIMITS)


def test_missing_parts_are_listed_with_their_command(tmp_path, sources):
    bare = PageSources(
        **dict.fromkeys(("report", "evaluated", "errors", "scaling", "objects", "ood"), tmp_path),
        generated=sources.generated,
    )
    content = collect(bare, ["fog"], LIMITS)
    commands = [part.remedy for part in content.missing]
    assert [command.split()[1] for command in commands] == [
        "report/correlate.py",
        "relis/eval.py",
        "relis/eval_calibration_clustering.py",
        "ood_objects/get_masks.py",
    ]
    html = render_page(content)
    assert all(command in html for command in commands)
    assert 'id="agreement"' not in html and 'id="generated"' in html
    assert all(entry["models"] == {} for entry in data_of(html)["gallery"]["images"])


def test_refused_objects_are_not_shown(tmp_path):
    sources = write_world(tmp_path, images=1, models=("good",), domains=("fog",))
    write_json(sources.objects / "masks/curated.json", {"lion": {"0": False}, "rubber_duck": {"0": True}})
    content = collect(sources, None, LIMITS)
    assert [entry["object"] for entry in content.objects["images"]] == ["rubber_duck"]
    assert content.objects["images"][0]["models"] == {"good": {"entropy": 90.0}}
    write_json(sources.objects / "masks/curated.json", {"lion": {"0": False}, "rubber_duck": {"0": False}})
    content = collect(sources, None, LIMITS)
    assert content.objects is None and content.missing[-1].remedy.endswith("get_masks.py --preset mini")


def test_a_domain_that_is_not_there_and_another_format_are_refused(tmp_path, sources):
    with pytest.raises(GenValError, match=r"No generated images of snow.*found fog, night"):
        collect(sources, ["snow"], LIMITS)
    write_json(tmp_path / "correlation.json", {"format": 99})
    with pytest.raises(GenValError, match="is of format 99, expected format 4"):
        collect(dataclasses.replace(sources, report=tmp_path), None, LIMITS)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (
            "robustness.fog.models[1].true: expected an object, found an integer",
            lambda fog: fog["models"][1].update(true=3),
        ),
        ("robustness.fog.bias: expected a value, found no such key", lambda fog: fog.pop("bias")),
        ("robustness.fog.unit: expected text, found null", lambda fog: fog.update(unit=None)),
        ("robustness.fog.classes: expected a list, found text", lambda fog: fog.update(classes="road")),
    ],
)
def test_a_comparison_of_another_shape_is_refused_by_its_key(tmp_path, sources, key, change):
    values = example_correlation(MODELS, ("fog",))
    change(values["robustness"]["fog"])
    write_json(tmp_path / "correlation.json", values)
    command = "Write it again: python report/correlate.py --preset mini"
    with pytest.raises(GenValError, match=re.escape(f"{tmp_path / 'correlation.json'}, key {key}. {command}")):
        collect(dataclasses.replace(sources, report=tmp_path), None, LIMITS)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED = {
    "truncated comparison": ("report/correlation.json", halve),
    "empty comparison": ("report/correlation.json", lambda path: path.write_bytes(b"")),
    "comparison that is a list": ("report/correlation.json", lambda path: path.write_text("[]")),
    "damaged line of a manifest": (
        "generated/fog/manifest.jsonl",
        lambda path: path.write_bytes(path.read_bytes()[9:]),
    ),
    "manifest that is a list": ("generated/fog/manifest.jsonl", lambda path: path.write_text("[]")),
    "truncated metrics": ("eval/good/Cityscapes_fog/fog/bonn/metrics.json", halve),
    "truncated settings": ("generated/fog/settings.json", halve),
    "truncated result of scaling": ("scaling/good/ACDC_fog/from_Cityscapes_fog_all/vanilla_ece.json", halve),
    "truncated reliability": ("errors/good/Cityscapes_fog_all.json", halve),
    "truncated results of OOD detection": ("ood/generated/good.json", halve),
    "results of OOD detection that are a list": ("ood/generated/good.json", lambda path: path.write_text("[]")),
    "truncated mask of an object": ("objects/masks/lion/0_mask.png", halve),
    "truncated image with an object": ("objects/refined/lion/0.png", halve),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_of_the_page_are_refused_by_name(tmp_path, sources, kind):
    shutil.copytree(sources.report.parent, tmp_path, dirs_exist_ok=True)
    moved = {name: tmp_path / getattr(sources, name).name for name in vars(sources) if name != "preset"}
    name, damage = DAMAGED[kind]
    damage(tmp_path / name)
    with pytest.raises(GenValError, match=re.escape(str(tmp_path / name))):
        collect(PageSources(**moved, preset="mini"), None, LIMITS)


def test_a_comparison_is_read_and_written_unchanged():
    values = example_correlation(MODELS, ("fog", "night"))
    assert json.loads(json.dumps(Report.from_json(values).to_json())) == values


def test_a_page_of_the_mini_world_says_that_its_data_sets_are_stand_ins(sources):
    content = collect(sources, None, LIMITS)
    assert "rendered stand-ins, not the real data" in render_page(content)
    assert "stand-ins" not in render_page(dataclasses.replace(content, preset=None))


def test_a_page_over_twenty_megabytes_is_not_written(tmp_path, sources, monkeypatch):
    monkeypatch.setattr("genval.report.page.render.MAX_BYTES", 1_000_000)
    with pytest.raises(GenValError, match="--max_gallery"):
        write_page(tmp_path / "index.html", collect(sources, None, LIMITS))
    assert not (tmp_path / "index.html").exists()


def test_the_images_leave_room_for_the_scores_of_every_model():
    models = [f"hf:checkpoints/segmenters/architecture-{number}" for number in range(42)]
    domains = ("fog", "night", "rain", "snow", "india")
    correlation = example_correlation(models, domains)
    by_metric = correlation["ood_detection"]["RoadAnomaly21"]["entropy"]
    of_set = {score: dict.fromkeys(METRICS, by_metric["auroc"]) for score in ("msp", "max_logit", "entropy", "energy")}
    correlation["ood_detection"] = dict.fromkeys(("RoadAnomaly21", "RoadObstacle21"), of_set)
    bins = {"pixels": [300007] * BINS, "right": [100003] * BINS, "confidence": [100000 / 7] * BINS}
    panel = {"ece": 100 / 7, **diagram_of_bins(bins)}
    diagrams = [
        {"model": model, "tested_on": f"ACDC_{pair}", "calibrated_on": "Cityscapes_fog_all", "method": "vanilla_ece"}
        | {"panels": {"before": panel, "after scaling": panel}}
        for model in models
        for pair in range(4 * len(domains))
    ]
    provenance = {"runs": [], "weights": {}, "versions": {}, "warnings": []}
    size = len(render_page(PageContent(Report.from_json(correlation), None, None, diagrams, provenance)).encode())
    characters = GalleryLimits().characters
    assert size > 5_000_000  # the plotting library is among it
    # A megabyte is left for the images' names and scores, and the provenance.
    assert size + characters + characters // 3 < MAX_BYTES - 1_000_000


def test_means_before_and_after_scaling_are_of_the_same_models(page):
    text = page.read_text(encoding="utf-8")
    assert "→ 10.0 (with the temperature of clear weather: 9.4 → 10.0)" in text


def test_a_card_shows_the_result_of_the_hardest_images(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    said = re.findall(r"temperatures of the hardest [^<]+ of the images: [^<]+ → [^<]+</p>", text)
    assert said and all(f"hardest half of the images: 93&nbsp;% [66, 99] of {len(MODELS)}" in one for one in said)
    assert all(one.endswith("→ 7.3</p>") for one in said)


def test_the_five_best_are_left_out_where_there_are_no_more(tmp_path, sources):
    correlation = example_correlation(MODELS, ("fog",))
    correlation["robustness"]["fog"]["ranking"]["synthetic"]["top_5"] = None
    html = render_page(dataclasses.replace(collect(sources, None, LIMITS), report=Report.from_json(correlation)))
    assert "Regret 1.2" in html and "five best in common" not in html


def with_generators(correlation, *names):
    """Add generators after the first to an example, with the scores of the first."""
    correlation["predictors"] = [one.to_json() for one in list_predictors([Generator(n, None) for n in names])]
    for comparison in correlation["robustness"].values():
        for name in names[1:]:
            for part in ("correlation", "sets", "ranking"):
                comparison[part][name] = comparison[part]["synthetic"]
            comparison["difference"][name], comparison["beats"][name] = comparison["difference"]["clear"], "undecided"
            for row in comparison["models"]:
                row[name] = row["synthetic"]
    return Report.from_json(correlation)


def test_generators_are_shown_side_by_side(sources):
    report = with_generators(example_correlation(MODELS, ("fog",)), "controlnet", "img2img", "fourier")
    content = collect(sources, None, LIMITS)
    html = render_page(dataclasses.replace(content, report=report))
    assert "undecided against img2img" in html and "difference of Pearson’s r: controlnet - fourier" in html
    assert html.count('<div class="row other">') == 2 and '<option value="img2img">img2img</option>' in html
    assert data_of(html)["sideNames"]["synthetic"] == "controlnet"
    few = select_generators(report, ["img2img"])
    assert "fourier" not in render_page(dataclasses.replace(content, report=few)).split('id="data"')[0]


def test_no_model_is_named_without_a_correlation(sources):
    correlation = example_correlation(MODELS, ("fog",))
    correlation["answers"] = {"trust": {"fog": "no"}, "model": {}, "images": {}}
    html = render_page(dataclasses.replace(collect(sources, None, LIMITS), report=Report.from_json(correlation)))
    assert "Generated images give no answer: no positive correlation is shown." in html and "Regret 1.2" not in html


class Tags(HTMLParser):
    """Opened tags with their attributes; tags that are not closed in order are an error."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())


def test_the_page_is_one_well_formed_file_that_asks_for_nothing(page, sources):
    html = page.read_text(encoding="utf-8")
    assert len(html) < 20_000_000
    tags = Tags(html).tags
    linked = [value for _, by in tags for key, value in by.items() if key in ("src", "href")]
    assert linked and all(value.startswith(("#", "data:")) for value in linked)
    policy = next(by["content"] for tag, by in tags if by.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "http" not in policy
    ids = [by["id"] for _, by in tags if "id" in by]
    assert len(ids) == len(set(ids))
    assert all(by["aria-labelledby"] in ids for _, by in tags if "aria-labelledby" in by)
    own = html.replace(re.search(r"<script>/\*\*.*?</script>", html, re.S)[0], "")
    assert not re.search(r"url\(|@import|fetch\(|https?://", own)
    again = write_page(page.with_name("again.html"), collect(sources, None, LIMITS))
    assert again.read_bytes() == page.read_bytes()


def test_texts_cannot_break_out_of_the_page(page):
    html = page.read_text(encoding="utf-8")
    assert "</script> & <b>" not in html
    entry = data_of(html)["gallery"]["images"][0]
    assert "</script> & <b>in</b>" in entry["prompt"]
    assert int(entry["seed"]) >= 2**62  # as text: a browser's numbers have 53 bits


def test_names_in_charts_are_not_markup(page):
    script = page.read_text(encoding="utf-8")
    (function,) = re.findall(r"const plain = .*", script)
    if shutil.which("node") is None:
        pytest.skip("no node on the PATH (Debian: apt-get install nodejs)")
    name = '<a href="javascript:alert(1)">x</a> <b>y</b> &lt; %{x} $z$'
    code = f"{function} console.log(plain({json.dumps(name)}))"
    shown = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"[<>%$]|&(?!#\d+;)", shown) and markup.unescape(shown.strip()) == name
    # Elsewhere names are set as text, never as markup.
    labels = re.findall(r".*DATA\.labels\[.*", (REPO_ROOT / "genval/report/page/templates/charts.js").read_text())
    assert labels and all("plain(DATA.labels" in line or "fill(" in line or "aria-label" in line for line in labels)


def test_the_domains_are_in_the_order_of_the_comparison(page):
    html = page.read_text(encoding="utf-8")
    assert [entry["name"] for entry in data_of(html)["gallery"]["domains"]] == ["night", "fog"]
    assert "python report/correlate.py --preset mini" in html
    assert "<p>Yes for night (r\u00a00.90, clear −0.28).</p><p>Not shown for others.</p>" in html


@pytest.mark.slow
def test_the_script_writes_the_page_and_prints_the_verdict(sources, tmp_path):
    folder = tmp_path / "report"
    write_json(folder / "correlation.json", example_correlation(MODELS, ("night", "fog"), objects=False))
    flags = {
        "--generated_dir": sources.generated,
        "--root_exp_dir": sources.evaluated,
        "--errors_dir": tmp_path / "none",
        "--scaling_dir": tmp_path / "none",
        "--objects_dir": tmp_path / "none",
        "--ood_dir": tmp_path / "none",
        "--results_dir": folder,
        "--max_gallery": 2,
    }
    command = ["report/make_report.py", "--preset", "mini", *(word for pair in flags.items() for word in pair)]
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    assert "Can the synthetic verdict be trusted? Yes for night" in done.stdout
    assert "missing: images with objects" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith(f"wrote {folder}/index.html")
    failed = run_script(*command, "--domains", "hail")
    assert failed.returncode == 2 and failed.stderr.startswith("error: No generated images of hail")


@pytest.fixture(scope="module")
def open_page(page, tmp_path_factory):
    """Opens the page at a width; every browser is closed at the end."""
    if find_chromium() is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")
    browsers = []

    def open_at(width, dark=False, unfold=True):
        browser = Browser(tmp_path_factory.mktemp("profile"), width, dark=dark)
        browsers.append(browser)
        browser.open(page.as_uri())
        browser.wait("document.querySelector('#object-gallery .view')")  # what is drawn last
        if unfold:
            browser.run("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
            browser.wait("[...document.querySelectorAll('.plot')].every((plot) => plot.getAttribute('aria-label'))")
        return browser

    yield open_at
    for browser in browsers:
        browser.close()


def texts(browser, selector, what="textContent"):
    return browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((element) => element.{what})")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_opens_without_complaint_at_every_width(open_page, width, dark):
    browser = open_page(width, dark)
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("document.querySelectorAll('#scatter .plot').length") == 2
    assert browser.run("[...document.querySelectorAll('.plot')].every((plot) => plot.clientWidth > 200)")
    broken = "[...document.images].filter((image) => image.complete && !image.naturalWidth).length"
    assert browser.run("document.images.length") >= 5 * 3 and browser.run(broken) == 0
    assert browser.run("[...document.images].every((image) => image.hasAttribute('alt'))")
    assert browser.run("[...document.querySelectorAll('select, input')].every((field) => field.labels.length === 1)")
    controls = "[...document.querySelectorAll('select, .more:not([hidden]), .check')]"
    assert min(browser.run(f"{controls}.map((control) => control.getBoundingClientRect().height)")) >= 40
    assert browser.run("[...document.querySelectorAll('.plot')].every((plot) => plot.getAttribute('aria-label'))")
    assert len(texts(browser, "#scatter .facet h3")) == 2
    edge = "Math.ceil(plot.closest('.facet, .chart').getBoundingClientRect().right)"
    labels = "[...plot.querySelectorAll('text')].every((text) => text.getBoundingClientRect().right <= " + edge + ")"
    assert browser.run(f"[...document.querySelectorAll('.plot')].every((plot) => {labels})")
    assert browser.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_summary_is_first_and_details_are_folded(open_page, width):
    browser = open_page(width, unfold=False)
    assert texts(browser, ".summary li > b") == ["Night", "Fog"]
    assert "better than clear weather" in texts(browser, ".summary .chip")[0]
    assert browser.run("document.querySelector('.summary').getBoundingClientRect().bottom") < 900  # no scrolling
    assert browser.run("[...document.querySelectorAll('details')].every((fold) => !fold.open)")
    assert browser.run("document.documentElement.scrollWidth") == width
    folded = browser.run("document.documentElement.scrollHeight")
    browser.run("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    browser.wait("document.querySelector('#severity-chart .main-svg')")
    assert folded < 0.7 * browser.run("document.documentElement.scrollHeight")
    assert browser.complaints == []


@pytest.mark.slow
def test_filters_order_and_charts_follow_their_controls(open_page):
    browser = open_page(1280)
    assert texts(browser, "#gallery-count") == ["6 of 8 images"]
    browser.run("document.getElementById('gallery-more').click()")
    worst = [float(value) for value in texts(browser, "#gallery .shot", "dataset.miou")]
    assert len(worst) == 8 and worst == sorted(worst)
    browser.choose("gallery-order", "best")
    best = [float(value) for value in texts(browser, "#gallery .shot", "dataset.miou")]
    assert len(best) == 6 and best == sorted(worst, reverse=True)[:6]
    browser.choose("gallery-domain", "fog")
    assert set(texts(browser, "#gallery .shot", "dataset.domain")) == {"fog"}
    assert texts(browser, "#gallery-count") == ["4 of 4 images"] and browser.run(
        "document.getElementById('gallery-more').hidden"
    )
    browser.choose("gallery-model", "hf:some/folder/poor")
    poor = [float(value) for value in texts(browser, "#gallery .shot", "dataset.miou")]
    assert max(poor) < min(best)

    assert texts(browser, "#object-gallery .view", "dataset.object") == ["lion", "rubber_duck"]  # least noticed first
    browser.choose("object-order", "best")
    assert texts(browser, "#object-gallery .view", "dataset.object") == ["rubber_duck", "lion"]
    browser.choose("object-name", "lion")
    assert texts(browser, "#object-count") == ["1 of 1 images"]
    browser.run("document.getElementById('object-mask').click()")
    assert browser.run("document.querySelectorAll('#object-gallery img').length") == 1

    label = "document.querySelector('#scatter .plot').getAttribute('aria-label')"
    assert "generated against reference" in browser.run(label)
    browser.choose("scatter-side", "clear")
    assert "clear weather against reference" in browser.run(label)
    browser.choose("scatter-metric", "ece")
    assert "ECE of 2 segmenters" in browser.run(label)
    browser.choose("scatter-model", "hf:some/folder/poor")
    assert "poor" in "".join(texts(browser, "#scatter .annotation-text"))
    browser.choose("size-metric", "tau")
    assert "tau" in browser.run("document.getElementById('sample-size').getAttribute('aria-label')")
    browser.choose("severity-model", "hf:some/folder/poor")
    assert browser.run("document.getElementById('severity-chart').data.map((trace) => trace.y)")[-1] == [69, 64, 39]
    assert texts(browser, "#severity .big") == ["1 of 2"]
    said = ["before", "after, temperature of generated images", "◆after, temperature of the hardest half"]
    assert texts(browser, "#dumbbell-key span") == said
    assert browser.run("document.getElementById('dumbbell').data.map((trace) => trace.x.length)") == [6, 2, 2, 2]
    assert browser.run("setName('Cityscapes_fog_all_hardest12.5')") == "generated fog, hardest 12.5 %"
    browser.choose("diagram-set", "ACDC_night")
    browser.choose("diagram-model", "hf:some/folder/poor")
    assert browser.run("document.querySelectorAll('#diagrams .facet').length") == 2
    assert "poor on ACDC night" in browser.run("document.querySelector('#diagrams .plot').getAttribute('aria-label')")
    browser.choose("diagram-set", "Cityscapes_fog_all")
    assert texts(browser, "#diagrams h3") == ["Before"] and texts(browser, "#diagrams .small") == ["ECE 30.00 %"]
    browser.choose("class-domain", "fog")
    assert browser.run("[...document.querySelectorAll('.classes')].filter((e) => !e.hidden)[0].dataset.domain") == "fog"
    assert browser.complaints == []


@pytest.mark.slow
def test_the_keyboard_sorts_the_table_and_opens_and_closes_an_image(open_page):
    browser = open_page(1280, unfold=False)
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("document.querySelector('#scatter .plot')") is None  # folded: nothing is drawn yet
    for place in ("#agreement details:has(#scatter)", "#ranking details"):
        browser.run(f"document.querySelector('{place} > summary').focus()")
        browser.press("Enter", 13, "\r")
    browser.wait("document.querySelector('#scatter .plot')?.clientWidth > 200")
    browser.run("document.querySelector('#models button[data-column=\"2\"]').focus()")
    column = "[...document.querySelectorAll('#models tbody tr')].map((row) => parseFloat(row.cells[2].textContent))"
    browser.press("Enter", 13, "\r")
    down = browser.run(column)
    browser.press("Enter", 13, "\r")
    assert down == sorted(down, reverse=True) and browser.run(column) == sorted(down)
    assert browser.run("document.querySelector('#models [aria-sort]').getAttribute('aria-sort')") == "ascending"
    browser.run("document.querySelector('#gallery .view').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.run("document.getElementById('viewer').open") and browser.run(
        "document.querySelector('#viewer img').naturalWidth"
    )
    browser.press("Escape", 27)
    browser.wait("!document.getElementById('viewer').open")
    assert browser.run("document.activeElement.matches('#gallery .view')")
    assert browser.complaints == []


@pytest.mark.slow
def test_a_page_without_a_comparison_works_too(sources, tmp_path, open_page):
    bare = dataclasses.replace(
        sources, report=tmp_path, errors=tmp_path, scaling=tmp_path, objects=tmp_path, ood=tmp_path
    )
    path = write_page(tmp_path / "index.html", collect(bare, ["fog"], LIMITS))
    browser = open_page(1280)
    browser.open(path.as_uri())
    browser.wait("document.querySelectorAll('#gallery .shot').length === 4")
    assert texts(browser, ".contents a") == ["Images", "Provenance"]
    assert browser.complaints == []
