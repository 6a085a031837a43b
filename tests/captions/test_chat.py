"""Image-to-text models that follow a prompt: captions as transformers generates them, alone and in batches."""

import json

import numpy as np
import pytest

from benchmarks.components.captioners import MAKERS, write_tiny
from genval.captions.captioners import load_captioner
from genval.captions.chat import PROMPT
from genval.runtime.errors import GenValError


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function from a class to a folder with a small model of it."""
    made = {}

    def find(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            write_tiny(name, made[name])
        return made[name]

    return find


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(256, size=(48, 64, 3), dtype=np.uint8) for _ in range(3)]


@pytest.mark.parametrize("name", MAKERS)
def test_captions_equal_those_of_transformers(folder_of, images, name):
    import transformers

    captioner = load_captioner(str(folder_of(name)))
    captions = captioner.caption_prepared([captioner.prepare(image) for image in images], max_tokens=6)
    processor = transformers.AutoProcessor.from_pretrained(folder_of(name))
    model = getattr(transformers, name).from_pretrained(folder_of(name)).eval()
    for image, caption in zip(images, captions, strict=True):
        if name.startswith("Florence2"):
            inputs = processor(images=image, text="<DETAILED_CAPTION>", return_tensors="pt")
        else:
            content = [{"type": "image", "image": image}, {"type": "text", "text": PROMPT}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        answer = tokens if name.startswith("Florence2") else tokens[:, inputs["input_ids"].shape[1] :]
        assert caption == " ".join(processor.batch_decode(answer, skip_special_tokens=True)[0].split())
        assert caption
    assert captioner.caption_prepared(images[2:], max_tokens=6) == captions[2:]


def test_half_precision_and_a_prompt_file(folder_of, images, tmp_path):
    (tmp_path / "prompt.txt").write_text("describe the\nstreet\n")
    folder = str(folder_of("Qwen3VLForConditionalGeneration"))
    captioner = load_captioner(folder, str(tmp_path / "prompt.txt"), "bf16-true")
    assert captioner.record["prompt"] == "describe the street"
    assert captioner.record["captioner_hash"] == captioner.hash
    assert len(captioner.caption_prepared(images, max_tokens=2)) == 3
    (tmp_path / "prompt.txt").write_text(" \n")
    with pytest.raises(GenValError, match=r"prompt\.txt is empty"):
        load_captioner(folder, str(tmp_path / "prompt.txt"))


def test_a_prompt_that_the_model_does_not_take_is_refused(folder_of, images, tmp_path):
    (tmp_path / "prompt.txt").write_text("<CAPTION> and more")
    captioner = load_captioner(str(folder_of("Florence2ForConditionalGeneration")), str(tmp_path / "prompt.txt"))
    with pytest.raises(GenValError, match=r"cannot caption .* the only content .* another --prompt_file"):
        captioner.caption_prepared(images)


def test_smolvlm_names_the_library_that_it_needs(folder_of, images, tmp_path, monkeypatch):
    """Its processor reads videos out with num2words. The architecture is that of Idefics3."""
    import shutil

    import transformers
    from transformers.models.smolvlm import processing_smolvlm

    folder = shutil.copytree(folder_of("Idefics3ForConditionalGeneration"), tmp_path / "smolvlm")
    for file, key, value in (
        ("config.json", "model_type", "smolvlm"),
        ("processor_config.json", "processor_class", "SmolVLMProcessor"),
    ):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | {key: value}))
    transformers.SmolVLMVideoProcessor().save_pretrained(folder)
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(GenValError, match="pip install num2words"):
        load_captioner(str(folder))
    monkeypatch.setattr(processing_smolvlm, "num2words", str)
    captions = load_captioner(str(folder)).caption_prepared(images, max_tokens=4)
    assert len(captions) == 3 and all(captions)


def test_blip_is_loaded_as_blip(caption_models, tmp_path):
    from genval.captions.blip import Blip

    assert isinstance(load_captioner(str(caption_models.blip)), Blip)
    (tmp_path / "prompt.txt").write_text("describe")
    with pytest.raises(GenValError, match="takes no prompt"):
        load_captioner(str(caption_models.blip), str(tmp_path / "prompt.txt"))


def test_other_models_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    with pytest.raises(GenValError, match=r"of type 'segformer', which does not turn an image and a text into text"):
        load_captioner(str(tmp_path))


def test_weights_that_are_missing_are_refused(folder_of, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folder_of("Idefics3ForConditionalGeneration"), tmp_path / "captioner")
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GenValError, match=r"do not fit its config\.json.*lm_head"):
        load_captioner(str(folder))


def test_quantised_models_and_adapters_are_refused(tmp_path):
    write_tiny("Qwen3VLForConditionalGeneration", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "unknown"}}))
    with pytest.raises(GenValError, match=r"is quantised \(quantization_config: unknown\)"):
        load_captioner(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(GenValError, match="adapter of peft"):
        load_captioner(str(tmp_path))
