"""SegFormer (Xie et al., NeurIPS 2021) with 16 to 96 channels."""

_base_ = ["_base.py"]

model = dict(
    backbone=dict(
        type="MixVisionTransformer",
        in_channels=3,
        embed_dims=16,
        num_stages=4,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 6],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=3,
        qkv_bias=True,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.0,
    ),
    decode_head=dict(
        type="SegformerHead",
        in_channels=[16, 32, 64, 96],
        in_index=[0, 1, 2, 3],
        channels=64,
        dropout_ratio=0.1,
    ),
)
