"""BLIP and CLIP folders: loaded by the code that loads full-size ones, refused when they are not whole."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from genval.captions.blip import fuse_attention, load_blip
from genval.captions.clip import Clip, load_clip
from genval.runtime.errors import GenValError


def test_clip_gives_unit_vectors_that_depend_on_the_input_alone(caption_models, street_images):
    clip = load_clip(str(caption_models.clip)).to("cpu")
    images, texts = clip.encode_images(street_images), clip.encode_texts(["in fog", "at night", "in fog"])
    assert images.dtype == texts.dtype == torch.float32 and images.shape == (5, 16) and texts.shape == (3, 16)
    assert torch.allclose(torch.cat([images, texts]).norm(dim=-1), torch.ones(8), atol=1e-6)
    assert torch.equal(texts[0], texts[2]) and not torch.allclose(texts[0], texts[1])
    assert torch.allclose(clip.encode_images(street_images, batch_size=2), images, atol=1e-6)
    assert clip.encode_texts([]).shape == (0, 16)
    assert load_clip(f"local-dir:{caption_models.clip}").hash == clip.hash


def test_the_vectors_of_a_list_are_kept(caption_models, tmp_path, monkeypatch):
    monkeypatch.setenv("GENVAL_CACHE", str(tmp_path))
    clip, texts = load_clip(str(caption_models.clip)), ["in fog", "at night"]
    expected = clip.encode_texts(texts)
    encoded = []
    encode = Clip.encode_texts
    monkeypatch.setattr(Clip, "encode_texts", lambda self, given: encoded.append(given) or encode(self, given))
    assert torch.equal(clip.encode_list(texts), expected) and torch.equal(clip.encode_list(texts), expected)
    assert encoded == [texts]
    [file] = (tmp_path / "texts").iterdir()
    for damaged in (file.read_bytes()[:-9], file.read_bytes()[:10] + bytes([255] * 200), b"PK\x03\x04"):
        file.write_bytes(damaged)
        assert torch.equal(clip.encode_list(texts), expected) and encoded.pop() == texts
    assert clip.encode_list(["at night"]).shape == (1, 16) and len(encoded) == 2
    precise = load_clip(str(caption_models.clip), "bf16-true")
    assert not torch.equal(precise.encode_list(texts), expected) and len(encoded) == 3


def test_clip_is_open_clip_s_own_model(caption_models, street_images):
    import open_clip
    from PIL import Image

    source = f"local-dir:{caption_models.clip}"
    model, transform = open_clip.create_model_from_pretrained(source)
    clip = load_clip(str(caption_models.clip))
    with torch.no_grad():
        theirs = model.eval().encode_image(transform(Image.fromarray(street_images[0]))[None], normalize=True)
        words = model.encode_text(open_clip.get_tokenizer(source)(["trees, in fog"]), normalize=True)
    assert torch.allclose(clip.encode_images(street_images[:1]), theirs, atol=1e-6)
    assert torch.allclose(clip.encode_texts(["trees, in fog"]), words, atol=1e-6)


def test_clip_knows_which_texts_it_reads_to_the_end(caption_models):
    clip = load_clip(str(caption_models.clip))
    assert clip.fits("a street, trees") and not clip.fits("trees, " * 60)


def test_half_precision_is_close(caption_models, street_images):
    exact = load_clip(str(caption_models.clip)).encode_images(street_images)
    for precision in ("bf16-true", "bf16-mixed"):
        rough = load_clip(str(caption_models.clip), precision).encode_images(street_images)
        assert rough.dtype == torch.float32 and torch.allclose(rough, exact, atol=0.05)
    with pytest.raises(GenValError, match="Unknown precision"):
        load_clip(str(caption_models.clip), "64-true")


def test_values_that_are_not_finite_are_an_error(caption_models, tmp_path, street_images):
    folder = shutil.copytree(caption_models.clip, tmp_path / "clip")
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.conv1.weight"].fill_(float("nan"))
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(GenValError, match="not finite"):
        load_clip(str(folder)).encode_images(street_images)


def test_bad_clip_names_and_folders_are_refused(caption_models, tmp_path):
    for name, words in (
        ("ViT-L-15/openai", "No CLIP model ViT-L-15"),
        ("ViT-L-14/closedai", "openai, laion400m_e31"),
        (str(tmp_path), "No CLIP model"),
        ("local-dir:nowhere", "No CLIP model"),
    ):
        with pytest.raises(GenValError, match=words):
            load_clip(name)
    folder = shutil.copytree(caption_models.clip, tmp_path / "clip")
    weights = load_file(folder / "open_clip_model.safetensors")
    del weights["visual.conv1.weight"]
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(GenValError, match="Cannot load the CLIP model"):
        load_clip(str(folder))
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(GenValError, match="Cannot load the CLIP model"):  # open_clip alone would take random weights
        load_clip(str(folder))


def test_blip_captions_are_those_of_transformers(caption_models, street_images):
    from PIL import Image
    from transformers import BlipForConditionalGeneration, BlipProcessor

    blip = load_blip(str(caption_models.blip))
    captions = blip.caption_images(street_images, max_tokens=5, batch_size=2)
    processor = BlipProcessor.from_pretrained(caption_models.blip)
    model = BlipForConditionalGeneration.from_pretrained(caption_models.blip, dtype=torch.float32)
    for image, caption in zip(street_images, captions, strict=True):
        tokens = model.generate(**processor(images=Image.fromarray(image), return_tensors="pt"), max_new_tokens=5)
        words = processor.decode(tokens[0], skip_special_tokens=True)
        assert caption.replace(" ", "") == words.replace(" ", "") and caption


def test_words_are_spaced_as_people_write(caption_models):
    blip = load_blip(str(caption_models.blip))
    sentence = "a tree-lined street with two cars, trees and a person, in fog"
    tokens = blip._processor.tokenizer([sentence]).input_ids

    class Reads:
        def generate(self, pixels, **_):
            return tokens

    blip._model = Reads()
    assert blip.caption_images([np.zeros((8, 8, 3), np.uint8)]) == [sentence]


def test_fused_attention_is_blip_s_own(caption_models):
    from transformers import BlipForConditionalGeneration

    model = BlipForConditionalGeneration.from_pretrained(caption_models.blip, dtype=torch.float32).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.vision_model(pixels).last_hidden_state
        for layer in model.vision_model.encoder.layers:  # random weights hardly attend: sharpen them
            layer.self_attn.qkv.weight *= 20
        sharp = model.vision_model(pixels).last_hidden_state
        fuse_attention(model)
        fused = model.vision_model(pixels).last_hidden_state
        with_matrices = model.vision_model(pixels, output_attentions=True)
    assert not torch.allclose(plain, sharp, atol=1e-3)
    assert torch.allclose(fused, sharp, atol=1e-5)
    assert len(with_matrices.attentions) == len(model.vision_model.encoder.layers)
    assert torch.allclose(with_matrices.last_hidden_state, sharp, atol=1e-5)


def test_bad_blip_folders_are_refused(caption_models, tmp_path):
    with pytest.raises(GenValError, match="No BLIP captioner at"):
        load_blip(str(tmp_path / "none"))
    with pytest.raises(GenValError, match="Cannot load the BLIP captioner"):
        load_blip(str(tmp_path))
    folder = shutil.copytree(caption_models.blip, tmp_path / "blip")
    weights = load_file(folder / "model.safetensors")
    name = "vision_model.embeddings.patch_embedding.weight"
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(GenValError, match=f"missing: {name}"):
        load_blip(str(folder))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GenValError, match="do not fit"):
        load_blip(str(folder))
