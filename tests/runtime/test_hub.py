"""Hub names pin a revision, and a repository's own code never runs."""

import io
import json
import sys

import huggingface_hub
import pytest
import transformers

from genval.captions.blip import load_blip
from genval.captions.clip import load_clip
from genval.diffusion.models.pipelines import load_base
from genval.grounding.detector import load_detector
from genval.grounding.outliner import load_outliner
from genval.runtime.errors import GenValError
from genval.runtime.hub import pretrained, split_revision
from genval.segmenters import load_segmenter


def test_the_options_of_a_hub_name():
    assert pretrained("a/b@v1") == ("a/b", {"trust_remote_code": False, "revision": "v1"})
    assert pretrained("a/b") == ("a/b", {"trust_remote_code": False})


def test_a_folder_has_no_revision(tmp_path):
    (tmp_path / "net@home").mkdir()
    assert split_revision(f"{tmp_path}/net@home") == (f"{tmp_path}/net@home", None)


@pytest.mark.parametrize(
    "load",
    [
        lambda: load_segmenter("hf:some/model@v1", "cpu"),
        lambda: load_detector("some/model@v1"),
        lambda: load_outliner("some/model@v1"),
        lambda: load_blip("some/model@v1"),
        lambda: load_clip("hf-hub:some/model@v1"),
        lambda: load_base("some/model@v1"),
    ],
)
def test_every_hub_model_is_asked_for_at_its_revision(monkeypatch, load):
    asked = []

    def ask(name, *args, **options):
        asked.append((str(name), options.get("revision"), options.get("trust_remote_code", False)))
        raise OSError("no network")

    for owner in (transformers.AutoConfig, transformers.BlipProcessor):
        monkeypatch.setattr(owner, "from_pretrained", ask)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", ask)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **options: ask(name, **options))
    with pytest.raises(GenValError, match="some/model"):
        load()
    assert asked and set(asked) == {("some/model", "v1", False)}


@pytest.mark.parametrize("model_type", ["of_its_own", "segformer"])
def test_code_of_a_repository_does_not_run(tmp_path, monkeypatch, model_type):
    folder, ran = tmp_path / "net", tmp_path / "ran"
    folder.mkdir()
    classes = {"AutoConfig": "code.Config", "AutoModelForSemanticSegmentation": "code.Net"}
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": classes}))
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\ny\n"))
    for load in (load_outliner, load_detector, load_blip, lambda name: load_segmenter(f"hf:{name}", "cpu")):
        with pytest.raises(GenValError, match="net"):
            load(str(folder))
    with pytest.raises((ValueError, OSError), match=r"custom code|no file named"):  # as a library calls it
        transformers.AutoModelForSemanticSegmentation.from_pretrained(folder, config=None)
    assert not ran.exists()


@pytest.mark.parametrize("load", [load_outliner, load_detector])
def test_pickled_weights_are_refused(tmp_path, load):
    kind = "sam" if load is load_outliner else "grounding-dino"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(GenValError, match=r"pytorch_model\.bin is a pickled file.*safetensors"):
        load(str(tmp_path))
