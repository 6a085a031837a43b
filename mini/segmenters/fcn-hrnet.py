"""FCN on a high-resolution network (HRNet, Wang et al., TPAMI 2020) with 8 to 64 channels."""

_base_ = ["_base.py"]

model = dict(
    backbone=dict(
        type="HRNet",
        norm_cfg=_base_.norm_cfg,
        norm_eval=False,
        extra=dict(
            stage1=dict(num_modules=1, num_branches=1, block="BOTTLENECK", num_blocks=(1,), num_channels=(16,)),
            stage2=dict(num_modules=1, num_branches=2, block="BASIC", num_blocks=(1, 1), num_channels=(8, 16)),
            stage3=dict(num_modules=1, num_branches=3, block="BASIC", num_blocks=(1, 1, 1), num_channels=(8, 16, 32)),
            stage4=dict(
                num_modules=1,
                num_branches=4,
                block="BASIC",
                num_blocks=(1, 1, 1, 1),
                num_channels=(8, 16, 32, 64),
                multiscale_output=True,
            ),
        ),
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=[8, 16, 32, 64],
        in_index=(0, 1, 2, 3),
        channels=64,
        input_transform="resize_concat",
        kernel_size=1,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.0,
    ),
)
