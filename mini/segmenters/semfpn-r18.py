"""Semantic FPN (Kirillov et al., CVPR 2019) on a narrow ResNet-18, output stride 32."""

_base_ = ["_base.py"]

model = dict(
    backbone=dict(
        type="ResNetV1c",
        depth=18,
        stem_channels=16,
        base_channels=10,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 1, 1),
        strides=(1, 2, 2, 2),
        norm_cfg=_base_.norm_cfg,
        norm_eval=False,
    ),
    neck=dict(type="FPN", in_channels=[10, 20, 40, 80], out_channels=24, num_outs=4),
    decode_head=dict(
        type="FPNHead",
        in_channels=[24, 24, 24, 24],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=24,
        dropout_ratio=0.1,
    ),
)
