"""Names and defaults of the mini world, which `path_dicts.py` lists with those of the user's own data.

Plain data, no code. Relative paths start at the repository's root.
"""

from typing import Any

# Segmenters with weights in checkpoints/mini: name -> specification (see genval/segmenters).
SEGMENTERS: dict[str, str] = {
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

# Defaults that `--preset mini` selects, by script.
PRESET: dict[str, dict[str, Any]] = {
    "ControlNet/clip_int": {
        "blip": "checkpoints/mini/captioner",
        "clip": "checkpoints/mini/clip",
        # The world's CLIP knows only the captioner's words; it also scores wrong phrases of the lists highly.
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
    "ControlNet/train_lora": {
        "base": "checkpoints/mini/stable-diffusion",
        "output": "checkpoints/mini/lora",
        "save_dtype": "fp16",
        "height": 128,
        "width": 256,
        "cache_latents": True,
        "sampler": "dpm++",
        "steps": 10,
        "guidance_scale": 3.0,
    },
    "ControlNet/train_translation": {
        "unlabelled": (
            "fog=datasets/mini/acdc/rgb_anon/fog/train,night=datasets/mini/acdc/rgb_anon/night/train,"
            "rain=datasets/mini/acdc/rgb_anon/rain/train,snow=datasets/mini/acdc/rgb_anon/snow/train,"
            "india=datasets/mini/IDD_Segmentation/leftImg8bit/train"
        ),
        "data_dir": "datasets/mini",
        "output": "checkpoints/mini/translation",
        "height": 128,
        "width": 256,
        "channels": 32,
        "blocks": 6,
        "batch_size": 20,
        "balance_classes": True,
    },
    "ControlNet/style_transfer": {
        "translator": "checkpoints/mini/translation",
        "base": "checkpoints/mini/stable-diffusion",
        "controlnet": "checkpoints/mini/controlnet",
        "data_dir": "datasets/mini",
        "output_dir": "images/mini/style_transfer",
        "num_samples": 16,
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
        # Those of ood_objects/objects.txt that the world has a sprite of and that its model was trained on.
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
        "eval_dir": "results/mini/eval",
    },
    "relis/eval": {
        "segmenters": "all",
        "datasets_dir": "datasets/mini",
        "generated_dir": "images/mini/style_transfer",
        "eval_dir": "results/mini/eval",
        "batch_size": 4,
    },
    "relis/finetune": {
        "datasets_dir": "datasets/mini",
        "generated_dir": "images/mini/style_transfer",
        "crop_size": "128x256",
        "max_steps": 200,
        "val_every": 50,
        "lr": 2e-4,
        "warmup_steps": 20,
    },
    "relis/estimate": {
        "segmenters": "all",
        "eval_dir": "results/mini/eval",
        "output_dir": "results/mini/estimates",
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
        # The world's CLIP was trained only on streets without objects.
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
        # The benchmark's 500 and 100 pixels, scaled to frames of a sixteenth of the size.
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
        "generated_dir": "images/mini/style_transfer",
    },
    "report/correlate": {
        "eval_dir": "results/mini/eval",
        "scaling_dir": "results/mini/temperature_scaling",
        "ood_dir": "results/mini/ood_detection",
        "generated_dir": "images/mini/style_transfer",
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
}
