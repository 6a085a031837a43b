"""UPerNet (Xiao et al., ECCV 2018) on a Swin transformer (Liu et al., ICCV 2021) with 16 to 128 channels."""

_base_ = ["_base.py"]

model = dict(
    backbone=dict(
        type="SwinTransformer",
        pretrain_img_size=256,
        patch_size=4,
        embed_dims=16,
        depths=(2, 2, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        mlp_ratio=2,
        strides=(4, 2, 2, 2),
        out_indices=(0, 1, 2, 3),
        qkv_bias=True,
        drop_path_rate=0.0,
        patch_norm=True,
        norm_cfg=dict(type="LN", requires_grad=True),
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[16, 32, 64, 128],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=16,
        dropout_ratio=0.1,
    ),
)
