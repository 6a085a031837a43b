"""The one file to edit: where data sets and checkpoints are, which domains exist, which segmenters have a name.

Plain data, no code. Relative paths start at the repository's root.
"""

from typing import Any

# Data sets as `--trg_dataset` names them, and the folder each is linked to. A folder found one level deeper
# (`datasets/<any name>/cityscapes`), or spelled with other capitals, is taken too.
DATASET_ROOTS: dict[str, str] = {
    "Cityscapes": "datasets/cityscapes",
    "ACDC": "datasets/acdc",
    "IDD": "datasets/IDD_Segmentation",
    "CamVid": "datasets/camvid",
    "BDD100K": "datasets/bdd100k",
    "MUSES": "datasets/muses",
    "DarkZurich": "datasets/dark_zurich",
    "Mapillary": "datasets/mapillary",
    "Mapillary-v2": "datasets/mapillary",
}

# Sets with unknown objects, as `--trg_dataset` of ood_detection/main_gen_ood.py names them; found as those above are.
OOD_ROOTS: dict[str, str] = {
    "RoadAnomaly21": "datasets/dataset_AnomalyTrack",
    "RoadObstacle21": "datasets/dataset_ObstacleTrack",
    "FishyscapesLostAndFound": "datasets/fishyscapes",
    "FishyscapesStatic": "datasets/fishyscapes",
    "RoadAnomaly": "datasets/RoadAnomaly_jpg",
    "StreetHazards": "datasets/streethazards",
}

# Generated sets, `Cityscapes_{domain}`: the output of ControlNet/style_transfer.py.
GENERATED_ROOT = "images/style_transfer"

# Domains with a name, and how the prompt ends in each; any other text after --domain is used as it is.
DOMAINS: dict[str, str] = {
    "clear": "on a clear day",
    "fog": "in fog",
    "night": "in night",
    "rain": "in rain",
    "snow": "in snow",
    "india": "in india",
    "dusk": "in dusk",
}

# The set with true pictures of a domain, which what was generated is compared with: data set and condition.
REAL_SETS: dict[str, tuple[str, str]] = {
    "fog": ("ACDC", "fog"),
    "night": ("ACDC", "night"),
    "rain": ("ACDC", "rain"),
    "snow": ("ACDC", "snow"),
    "india": ("IDD", "india"),
    "dusk": ("CamVid", "dusk"),
}

# Sets that ControlNet/clip_int.py captions: data sets with a condition each, in `datasets_dir` where that is another.
CAPTION_SETS: dict[str, dict[str, Any]] = {
    "cityscapes": {"parts": [("Cityscapes", "all")]},
    "idd": {"parts": [("IDD", "all")]},
    "acdc_fog": {"parts": [("ACDC", "fog")]},
    "acdc_night": {"parts": [("ACDC", "night")]},
    "acdc_rain": {"parts": [("ACDC", "rain")]},
    "acdc_snow": {"parts": [("ACDC", "snow")]},
    "camvid": {"parts": [("CamVid", "all")]},
    "mini": {"parts": [("Cityscapes", "all"), ("ACDC", "all")], "datasets_dir": "datasets/mini"},
}

# The model zoo: name -> mmsegmentation config (as shipped with the mmsegmentation package), changes to it, and the
# checkpoint's place below CHECKPOINT_ROOT. Configs and files: the model zoo of mmsegmentation 0.x.
CHECKPOINT_ROOT = "checkpoints"
ZOO: dict[str, dict[str, Any]] = {
    "SETR-PUP": {
        "config": "setr/setr_vit-l_pup_8xb1-80k_cityscapes-768x768.py",
        "overrides": {"model.backbone.patch_bias": True},
        "checkpoint": "SETR/setr_pup_vit-large_8x1_768x768_80k_cityscapes_20211122_155115-f6f37b8f.pth",
    },
    "SETR-Naive": {
        "config": "setr/setr_vit-l_naive_8xb1-80k_cityscapes-768x768.py",
        "overrides": {"model.backbone.patch_bias": True},
        "checkpoint": "SETR/setr_naive_vit-large_8x1_768x768_80k_cityscapes_20211123_000505-20728e80.pth",
    },
    "SETR-MLA": {
        "config": "setr/setr_vit-l_mla_8xb1-80k_cityscapes-768x768.py",
        "overrides": {"model.backbone.patch_bias": True},
        "checkpoint": "SETR/setr_mla_vit-large_8x1_768x768_80k_cityscapes_20211119_101003-7f8dccbe.pth",
    },
    "SegFormer-B0": {
        "config": "segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py",
        "checkpoint": "SegFormer/segformer_mit-b0_8x1_1024x1024_160k_cityscapes_20211208_101857-e7f88502.pth",
    },
    "SegFormer-B1": {
        "config": "segformer/segformer_mit-b1_8xb1-160k_cityscapes-1024x1024.py",
        "checkpoint": "SegFormer/segformer_mit-b1_8x1_1024x1024_160k_cityscapes_20211208_064213-655c7b3f.pth",
    },
    "SegFormer-B2": {
        "config": "segformer/segformer_mit-b2_8xb1-160k_cityscapes-1024x1024.py",
        "checkpoint": "SegFormer/segformer_mit-b2_8x1_1024x1024_160k_cityscapes_20211207_134205-6096669a.pth",
    },
    "SegFormer-B3": {
        "config": "segformer/segformer_mit-b3_8xb1-160k_cityscapes-1024x1024.py",
        "checkpoint": "SegFormer/segformer_mit-b3_8x1_1024x1024_160k_cityscapes_20211206_224823-a8f8a177.pth",
    },
    "SegFormer-B4": {
        "config": "segformer/segformer_mit-b4_8xb1-160k_cityscapes-1024x1024.py",
        "checkpoint": "SegFormer/segformer_mit-b4_8x1_1024x1024_160k_cityscapes_20211207_080709-07f6c333.pth",
    },
    "SegFormer-B5": {
        "config": "segformer/segformer_mit-b5_8xb1-160k_cityscapes-1024x1024.py",
        "checkpoint": "SegFormer/segformer_mit-b5_8x1_1024x1024_160k_cityscapes_20211206_072934-87a052ec.pth",
    },
    "SegFormer-B5_v2": {
        "config": "segformer/segformer_mit-b5_8xb1-160k_cityscapes-1024x1024.py",
        "overrides": {"model.test_cfg": {"_delete_": True, "mode": "whole"}},
        "checkpoint": "SegFormer/SegFormer-B5_v2_ckpt.pth",
    },
    "SegFormer-B5_v3": {
        "config": "segformer/segformer_mit-b5_8xb1-160k_cityscapes-1024x1024.py",
        "overrides": {"model.test_cfg": {"_delete_": True, "mode": "whole"}},
        "checkpoint": "SegFormer/SegFormer-B5_v3_ckpt.pth",
    },
    "DLV3+ResNet18": {
        "config": "deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "DLV3+/deeplabv3plus_r18-d8_769x769_80k_cityscapes_20201226_083346-f326e06a.pth",
    },
    "DLV3+ResNet50": {
        "config": "deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "DLV3+/deeplabv3plus_r50-d8_769x769_80k_cityscapes_20200606_210233-0e9dfdc4.pth",
    },
    "DLV3+ResNet101": {
        "config": "deeplabv3plus/deeplabv3plus_r101-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "DLV3+/deeplabv3plus_r101-d8_769x769_80k_cityscapes_20200607_000405-a7573d20.pth",
    },
    "Segmenter": {
        "config": "segmenter/segmenter_vit-l_mask_8xb1-160k_ade20k-512x512.py",
        "overrides": {
            "model.backbone.img_size": [769, 769],
            "model.decode_head.num_classes": 19,
            "model.decode_head.align_corners": True,
            "model.test_cfg.crop_size": [769, 769],
            "model.test_cfg.stride": [513, 513],
            "model.backbone.patch_bias": True,
            "model.data_preprocessor.mean": [123.675, 116.28, 103.53],
            "model.data_preprocessor.std": [58.395, 57.12, 57.375],
        },
        "checkpoint": "Segmenter/Segmenter_ckpt.pth",
    },
    "ConvNext": {
        "config": "convnext/convnext-large_upernet_8xb2-amp-160k_ade20k-640x640.py",
        "overrides": {
            "model.decode_head.num_classes": 19,
            "model.auxiliary_head.num_classes": 19,
            "model.decode_head.align_corners": True,
            "model.auxiliary_head.align_corners": True,
            "model.test_cfg.crop_size": [769, 769],
            "model.test_cfg.stride": [513, 513],
        },
        "checkpoint": "ConvNext/ConvNext_ckpt.pth",
    },
    "UpperNetR18": {
        "config": "upernet/upernet_r18_4xb2-80k_cityscapes-512x1024.py",
        "checkpoint": "UPerNet/UpperNetR18_ckpt.pth",
    },
    "UpperNetR50": {
        "config": "upernet/upernet_r50_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "UPerNet/upernet_r50_769x769_80k_cityscapes_20200607_005107-82ae7d15.pth",
    },
    "UpperNetR101": {
        "config": "upernet/upernet_r101_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "UPerNet/upernet_r101_769x769_80k_cityscapes_20200607_001014-082fc334.pth",
    },
    "ConvNext-B-In1K": {
        "config": "convnext/convnext-base_upernet_8xb2-amp-160k_ade20k-512x512.py",
        "overrides": {
            "model.decode_head.num_classes": 19,
            "model.auxiliary_head.num_classes": 19,
            "model.decode_head.align_corners": True,
            "model.auxiliary_head.align_corners": True,
            "model.test_cfg.crop_size": [769, 769],
            "model.test_cfg.stride": [513, 513],
        },
        "checkpoint": "ConvNext/ConvNext-B-In1K_ckpt.pth",
    },
    "ConvNext-B-In21K": {
        "config": "convnext/convnext-base_upernet_8xb2-amp-160k_ade20k-640x640.py",
        "overrides": {
            "model.decode_head.num_classes": 19,
            "model.auxiliary_head.num_classes": 19,
            "model.decode_head.align_corners": True,
            "model.auxiliary_head.align_corners": True,
            "model.test_cfg.crop_size": [769, 769],
            "model.test_cfg.stride": [513, 513],
        },
        "checkpoint": "ConvNext/ConvNext-B-In21K_ckpt.pth",
    },
    "SwinLarge": {
        "config": "swin/swin-large-patch4-window7-in22k-pre_upernet_8xb2-160k_ade20k-512x512.py",
        "overrides": {
            "model.decode_head.num_classes": 19,
            "model.auxiliary_head.num_classes": 19,
            "model.test_cfg": {"_delete_": True, "mode": "slide", "crop_size": [769, 769], "stride": [513, 513]},
        },
        "checkpoint": "Swin/SwinLarge_ckpt.pth",
    },
    "ANN-R50": {
        "config": "ann/ann_r50-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "ANN/ann_r50-d8_769x769_80k_cityscapes_20200607_044426-cc7ff323.pth",
    },
    "ANN-R101": {
        "config": "ann/ann_r101-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "ANN/ann_r101-d8_769x769_80k_cityscapes_20200607_013713-a9d4be8d.pth",
    },
    "APCNet-R50": {
        "config": "apcnet/apcnet_r50-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "APCNet/apcnet_r50-d8_769x769_80k_cityscapes_20201214_115718-7ea9fa12.pth",
    },
    "APCNet-R101": {
        "config": "apcnet/apcnet_r101-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "APCNet/apcnet_r101-d8_769x769_80k_cityscapes_20201214_115716-a7fbc2ab.pth",
    },
    "BiSeNetV1-R18": {
        "config": "bisenetv1/bisenetv1_r18-d32-in1k-pre_4xb4-160k_cityscapes-1024x1024.py",
        "checkpoint": "BiSeNetV1/bisenetv1_r18-d32_in1k-pre_4x4_1024x1024_160k_cityscapes_20210905_220251-8ba80eff.pth",
    },
    "BiSeNetV1-R50": {
        "config": "bisenetv1/bisenetv1_r50-d32-in1k-pre_4xb4-160k_cityscapes-1024x1024.py",
        "checkpoint": "BiSeNetV1/bisenetv1_r50-d32_in1k-pre_4x4_1024x1024_160k_cityscapes_20210917_234628-8b304447.pth",
    },
    "BiSeNetV2-FCN": {
        "config": "bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py",
        "checkpoint": "BiSeNetV2/bisenetv2_fcn_4x4_1024x1024_160k_cityscapes_20210902_015551-bcf10f09.pth",
    },
    "CCNet-R50": {
        "config": "ccnet/ccnet_r50-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "CCNet/ccnet_r50-d8_769x769_80k_cityscapes_20200617_010421-73eed8ca.pth",
    },
    "CCNet-R101": {
        "config": "ccnet/ccnet_r101-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "CCNet/ccnet_r101-d8_769x769_80k_cityscapes_20200618_011502-ad3cd481.pth",
    },
    "GCNet-R50": {
        "config": "gcnet/gcnet_r50-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "GCNet/gcnet_r50-d8_769x769_80k_cityscapes_20200619_092516-4839565b.pth",
    },
    "GCNet-R101": {
        "config": "gcnet/gcnet_r101-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "GCNet/gcnet_r101-d8_769x769_80k_cityscapes_20200619_092628-8e043423.pth",
    },
    "ICNet-R18": {
        "config": "icnet/icnet_r18-d8-in1k-pre_4xb2-160k_cityscapes-832x832.py",
        "checkpoint": "ICNet/icnet_r18-d8_in1k-pre_832x832_160k_cityscapes_20210926_052702-619c8ae1.pth",
    },
    "ICNet-R50": {
        "config": "icnet/icnet_r50-d8-in1k-pre_4xb2-160k_cityscapes-832x832.py",
        "checkpoint": "ICNet/icnet_r50-d8_in1k-pre_832x832_160k_cityscapes_20210926_042715-ce310aea.pth",
    },
    "ICNet-R101": {
        "config": "icnet/icnet_r101-d8-in1k-pre_4xb2-160k_cityscapes-832x832.py",
        "checkpoint": "ICNet/icnet_r101-d8_in1k-pre_832x832_160k_cityscapes_20210925_232612-9484ae8a.pth",
    },
    "MobileNetV3": {
        "config": "mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py",
        "checkpoint": "MobileNetV3/lraspp_m-v3-d8_512x1024_320k_cityscapes_20201224_220337-cfe8fb07.pth",
    },
    "PSPNet-R18": {
        "config": "pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "PSPNet/pspnet_r18-d8_769x769_80k_cityscapes_20201225_021458-3deefc62.pth",
    },
    "PSPNet-R50": {
        "config": "pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "PSPNet/pspnet_r50-d8_769x769_80k_cityscapes_20200606_210121-5ccf03dd.pth",
    },
    "PSPNet-R101": {
        "config": "pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-769x769.py",
        "checkpoint": "PSPNet/pspnet_r101-d8_769x769_80k_cityscapes_20200606_225055-dba412fa.pth",
    },
    "SemFPN-R50": {
        "config": "sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py",
        "checkpoint": "SemFPN/fpn_r50_512x1024_80k_cityscapes_20200717_021437-94018a0d.pth",
    },
    "SemFPN-R101": {
        "config": "sem_fpn/fpn_r101_4xb2-80k_cityscapes-512x1024.py",
        "checkpoint": "SemFPN/fpn_r101_512x1024_80k_cityscapes_20200717_012416-c5800d4c.pth",
    },
}

# Segmenters of the embedded world with weights in checkpoints/mini: name -> specification (see genval/segmenters).
MINI_SEGMENTERS: dict[str, str] = {
    "mini-fast-scnn": "mmseg:mini/segmenters/fast-scnn.py,checkpoints/mini/segmenters/fast-scnn.pth",
    "mini-bisenetv2-fcn": "mmseg:mini/segmenters/bisenetv2-fcn.py,checkpoints/mini/segmenters/bisenetv2-fcn.pth",
    "mini-pspnet-r18": "mmseg:mini/segmenters/pspnet-r18.py,checkpoints/mini/segmenters/pspnet-r18.pth",
    "mini-deeplabv3plus": "mmseg:mini/segmenters/deeplabv3plus.py,checkpoints/mini/segmenters/deeplabv3plus.pth",
    "mini-semfpn-r18": "mmseg:mini/segmenters/semfpn-r18.py,checkpoints/mini/segmenters/semfpn-r18.pth",
    "mini-fcn-hrnet": "mmseg:mini/segmenters/fcn-hrnet.py,checkpoints/mini/segmenters/fcn-hrnet.pth",
    "mini-upernet-swin": "mmseg:mini/segmenters/upernet-swin.py,checkpoints/mini/segmenters/upernet-swin.pth",
    "mini-segformer-mit": "mmseg:mini/segmenters/segformer-mit.py,checkpoints/mini/segmenters/segformer-mit.pth",
    "mini-bisenetv2-fcn-strong": (
        "mmseg:mini/segmenters/bisenetv2-fcn.py,checkpoints/mini/segmenters/bisenetv2-fcn-strong.pth"
    ),
    "mini-semfpn-r18-strong": "mmseg:mini/segmenters/semfpn-r18.py,checkpoints/mini/segmenters/semfpn-r18-strong.pth",
    "mini-segformer-hf": "hf:checkpoints/mini/segmenters/segformer-hf",
    "mini-upernet-convnext-hf": "hf:checkpoints/mini/segmenters/upernet-convnext-hf",
}

# `--preset NAME`: defaults a script takes in place of its own, by script.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The published training: everything in float32, no averaging, no mirroring, no caption left out.
    "published": {
        "ControlNet/train": {
            "precision": "32-true",
            "float32_matmul": "highest",
            "batch_size": 8,
            "accumulate": 16,
            "max_epochs": 150,
            "lr": 1e-5,
            "caption_dropout": 0.0,
            "ema": 0.0,
            "no_flip": True,
            "image_resize": "nearest",
        },
    },
    "mini": {
        "ControlNet/clip_int": {
            "blip": "checkpoints/mini/captioner",
            "clip": "checkpoints/mini/clip",
            # The world's CLIP knows the captioner's words alone: of the phrase lists it likes wrong ones too.
            "mode": "caption",
            "max_tokens": 72,
            "datasets_dir": "datasets/mini",
            "output_dir": "captions/world",
        },
        "ControlNet/tool_add_control": {"hint_init": "hinges"},
        "ControlNet/train": {
            "base": "checkpoints/mini/stable-diffusion",
            "controlnet": "checkpoints/mini/control_seg",
            "output": "checkpoints/mini/controlnet",
            "save_dtype": "fp16",
            "data_dir": "datasets/mini",
            "height": 128,
            "width": 256,
            "cache_latents": True,
            "batch_size": 96,
            "accumulate": 1,
            "max_steps": 3000,
            "lr": 3e-4,
            "hint_lr_scale": 4.0,
            "lr_schedule": "cosine",
            "warmup_steps": 150,
            "gradient_clip": 1.0,
            "ema": 0.998,
            "sampler": "dpm++",
            "steps": 10,
            "guidance_scale": 3.0,
        },
        "ControlNet/style_transfer": {
            "base": "checkpoints/mini/stable-diffusion",
            "controlnet": "checkpoints/mini/controlnet",
            "data_dir": "datasets/mini",
            "output_dir": "images/mini/style_transfer",
            "height": 128,
            "width": 256,
            "sampler": "dpm++",
            "steps": 10,
            "guidance_scale": 3.0,
            "control_scale": 1.5,
            "batch_size": 4,
        },
        "ood_objects/sd_inpaint": {
            "inpainting_model": "checkpoints/mini/inpainting",
            "objects_file": "mini/world/sprites/objects.txt",
            "data_dir": "datasets/mini",
            "output_dir": "images/mini/ood_objects/with_positions",
            # Those of ood_objects/objects.txt that the world has a picture of, and its model was taught.
            "num_images": 2,
            "size": 128,
            "sampler": "dpm++",
            "steps": 12,
            "guidance_scale": 3.0,
            "batch_size": 4,
        },
        "ood_objects/refine_gen_images": {
            "inpainting_model": "checkpoints/mini/inpainting",
            "images_dir": "images/mini/ood_objects/with_positions",
            "output_dir": "images/mini/ood_objects/refined",
            "size": 128,
            "sampler": "dpm++",
            "steps": 16,
            "guidance_scale": 3.0,
            "batch_size": 4,
        },
        "ControlNet/check_generated": {
            "generated_dir": "images/mini/style_transfer",
            "segmenter": "mini-segformer-mit",
            "clip": "checkpoints/mini/clip",
        },
        "relis/eval": {
            "segmenters": "all",
            "datasets_dir": "datasets/mini",
            "generated_dir": "images/mini/style_transfer",
            "eval_dir": "results/mini/eval",
            "batch_size": 4,
        },
        "relis/check_dataset": {
            "datasets_dir": "datasets/mini",
            "generated_dir": "images/mini/style_transfer",
            "output_dir": "results/mini/check",
        },
        "relis/compute_final_metrics": {
            "segmenters": "all",
            "eval_dir": "results/mini/eval",
            "output_dir": "results/mini/final_metrics",
        },
        "relis/extract_logits": {
            "segmenters": "all",
            "datasets_dir": "datasets/mini",
            "generated_dir": "images/mini/style_transfer",
            "eval_dir": "results/mini/eval",
            "batch_size": 4,
        },
        "relis/extract_features": {
            "segmenters": "all",
            "datasets_dir": "datasets/mini",
            "generated_dir": "images/mini/style_transfer",
            "eval_dir": "results/mini/eval",
        },
        "relis/eval_calibration": {
            "segmenters": "all",
            "eval_dir": "results/mini/eval",
            "output_dir": "results/mini/calibration_errors",
        },
        "relis/compute_clusters_temp_scaling": {
            "segmenters": "all",
            "eval_dir": "results/mini/eval",
            "calibration_dir": "results/mini/calibration",
        },
        "relis/eval_calibration_clustering": {
            "segmenters": "all",
            "eval_dir": "results/mini/eval",
            "calibration_dir": "results/mini/calibration",
            "output_dir": "results/mini/temperature_scaling",
        },
        "relis/train_lts_network": {
            "segmenters": "all",
            "eval_dir": "results/mini/eval",
            "calibration_dir": "results/mini/calibration",
        },
        "relis/eval_calibration_lts": {
            "segmenters": "all",
            "eval_dir": "results/mini/eval",
            "calibration_dir": "results/mini/calibration",
            "output_dir": "results/mini/local_scaling",
        },
        "relis/eval_local_ood": {
            "segmenters": "all",
            "eval_dir": "results/mini/eval",
            "output_dir": "results/mini/local_ood",
        },
        "relis/eval_ood": {
            "segmenters": "all",
            "eval_dir": "results/mini/eval",
            "output_dir": "results/mini/image_ood",
        },
        "relis/eval_prr": {
            "segmenters": "all",
            "eval_dir": "results/mini/eval",
            "output_dir": "results/mini/misclassification",
        },
        "ood_objects/get_masks": {
            "images_dir": "images/mini/ood_objects/refined",
            "positions_dir": "images/mini/ood_objects/with_positions",
            "output_dir": "images/mini/ood_objects/masks",
            "detector": "checkpoints/mini/grounding-dino",
            "sam": "checkpoints/mini/sam",
            # The world's CLIP has been shown streets alone, without objects.
            "clip": "none",
            # On held-out squares: 98 % of the objects found, 4 % false alarms (docs/mini.md); at 0.25 it would be 8 %.
            "box_threshold": 0.35,
        },
        "ood_detection/main_gen_ood": {
            "segmenters": "all",
            "images_dir": "images/mini/ood_objects/refined",
            "masks_dir": "images/mini/ood_objects/masks",
            "positions_dir": "images/mini/ood_objects/with_positions",
            "datasets_dir": "datasets/mini",
            "output_dir": "results/mini/ood_detection",
            # The benchmark's 500 and 100 pixels, for frames of a sixteenth of the size.
            "component_sizes": "32,6",
            "components": "entropy,energy",
            "batch_size": 4,
        },
        "relis/compare_domains": {
            "eval_dir": "results/mini/eval",
            "output_dir": "results/mini/demo",
        },
        "relis/corrupt": {
            "datasets_dir": "datasets/mini",
            "output_dir": "images/mini/corrupted",
        },
        "report/correlate": {
            "eval_dir": "results/mini/eval",
            "scaling_dir": "results/mini/temperature_scaling",
            "ood_dir": "results/mini/ood_detection",
            "output_dir": "results/mini/report",
        },
        "report/tables": {"output_dir": "results/mini/report"},
        "report/make_report": {
            "generated_dir": "images/mini/style_transfer",
            "eval_dir": "results/mini/eval",
            "errors_dir": "results/mini/calibration_errors",
            "scaling_dir": "results/mini/temperature_scaling",
            "objects_dir": "images/mini/ood_objects",
            "ood_dir": "results/mini/ood_detection",
            "output_dir": "results/mini/report",
        },
        "reproduce": {
            "render": True,
            "num_samples": 16,
            "logit_pixels": 2000,
            "output_dir": "results/mini/reproduce",
        },
        "relis/contact_sheet": {
            "generated_dir": "images/mini/style_transfer",
            "eval_dir": "results/mini/eval",
            "output_dir": "results/mini/demo",
        },
    },
}
