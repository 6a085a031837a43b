"""Masks against those of the segment-anything package, with the same random weights."""

import numpy as np
import pytest
import torch

from genval.grounding.outliner import load_outliner

pytest.importorskip("segment_anything", reason="the segment-anything package is not installed")


@pytest.fixture(scope="module")
def predictor():
    """A small model of the package's own classes."""
    from segment_anything import SamPredictor
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=128,
        patch_size=16,
        embed_dim=32,
        depth=3,
        num_heads=4,
        out_chans=32,
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(2,),
    )
    # The published decoder has 8 heads, and so has this one.
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=8)
    model = Sam(
        encoder,
        PromptEncoder(32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16),
        MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_depth=3, iou_head_hidden_dim=24),
    ).eval()
    # The package normalises over channels with 1e-6; random relative positions are zero before training.
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return SamPredictor(model)


@pytest.mark.parametrize("size", [(60, 60), (50, 90), (200, 170)])
def test_masks_and_estimates_agree(predictor, tmp_path, size):
    torch.save(predictor.model.state_dict(), tmp_path / "sam.pth")
    outliner = load_outliner(str(tmp_path / "sam.pth"))
    rng = np.random.default_rng(1)
    image = rng.integers(256, size=(*size, 3), dtype=np.uint8)
    box = (0.2 * size[1], 0.1 * size[0], 0.8 * size[1], 0.9 * size[0])
    predictor.set_image(image)
    masks, estimates, _ = predictor.predict(box=np.array(box), multimask_output=True)
    mask, estimate = outliner.outline([outliner.prepare(image)], [size], [box])[0]
    assert estimate == pytest.approx(estimates.max(), abs=1e-5)
    assert (mask != masks[estimates.argmax()]).mean() < 1e-3
