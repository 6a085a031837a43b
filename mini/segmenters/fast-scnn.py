"""Fast-SCNN (Poudel et al., BMVC 2019) at about half of the width."""

_base_ = ["_base.py"]

model = dict(
    backbone=dict(
        type="FastSCNN",
        downsample_dw_channels=(16, 24),
        global_in_channels=32,
        global_block_channels=(24, 40, 56),
        global_block_strides=(2, 2, 1),
        global_out_channels=64,
        higher_in_channels=32,
        lower_in_channels=64,
        fusion_out_channels=64,
        out_indices=(0, 1, 2),
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
    ),
    decode_head=dict(
        type="DepthwiseSeparableFCNHead",
        in_channels=64,
        channels=64,
        concat_input=False,
        in_index=-1,
    ),
)
