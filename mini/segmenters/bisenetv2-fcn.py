"""BiSeNetV2 (Yu et al., IJCV 2021) at half of the width, without its training-only heads."""

_base_ = ["_base.py"]

model = dict(
    backbone=dict(
        type="BiSeNetV2",
        detail_channels=(16, 32, 40),
        semantic_channels=(8, 16, 24, 40),
        semantic_expansion_ratio=4,
        bga_channels=40,
        out_indices=(0, 1, 2, 3, 4),
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=40,
        in_index=0,
        channels=48,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
    ),
)
