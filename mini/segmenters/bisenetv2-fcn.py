"""BiSeNetV2 (Yu et al., IJCV 2021) at half of the width, without its training-only heads."""

norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type="BiSeNetV2",
        detail_channels=(16, 32, 40),
        semantic_channels=(8, 16, 24, 40),
        semantic_expansion_ratio=4,
        bga_channels=40,
        out_indices=(0, 1, 2, 3, 4),
        norm_cfg=norm_cfg,
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
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
