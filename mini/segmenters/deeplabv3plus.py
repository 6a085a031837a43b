"""DeepLabV3+ (Chen et al., ECCV 2018) on a narrow ResNet-18, output stride 8."""

_base_ = ["_base.py"]

model = dict(
    backbone=dict(
        type="ResNetV1c",
        depth=18,
        stem_channels=16,
        base_channels=10,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=_base_.norm_cfg,
        norm_eval=False,
        contract_dilation=True,
    ),
    decode_head=dict(
        type="DepthwiseSeparableASPPHead",
        in_channels=80,
        in_index=3,
        channels=32,
        dilations=(1, 6, 12, 18),
        c1_in_channels=10,
        c1_channels=12,
        dropout_ratio=0.1,
    ),
)
