"""The one file to edit: where data sets and checkpoints are, which domains exist, which segmenters have a name.

Plain data. Relative paths start at the repository's root. The 42 segmenters of the model zoo are in `ZOO_FILE`, and the
names and defaults of the mini world are in `mini/presets.py`.
"""

import json
from pathlib import Path
from typing import Any

from mini import presets

# Data sets as `--trg_dataset` names them, and the folder each is linked to. A folder found one level deeper
# (`datasets/<any name>/cityscapes`), or spelled with other capitals is found too.
DATASET_ROOTS: dict[str, str] = {
    "Cityscapes": "datasets/cityscapes",
    "ACDC": "datasets/acdc",
    "IDD": "datasets/IDD_Segmentation",
    "IDD-lite": "datasets/idd20k_lite",
    "IDD-lite-flat": "datasets/idd_lite",
    "CamVid": "datasets/camvid",
    "CamVid-SegNet": "datasets/camvid",
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
    "RoadObstacle21-test": "datasets/dataset_ObstacleTrack",
    "RoadObstacle21-night": "datasets/dataset_ObstacleTrack",
    "RoadObstacle21-snow": "datasets/dataset_ObstacleTrack",
    "RoadObstacle21-validation": "datasets/dataset_ObstacleTrack",
    "LostAndFound": "datasets/dataset_LostAndFound",
    "LostAndFoundNoKnown": "datasets/dataset_LostAndFound",
    "FishyscapesLostAndFound": "datasets/fishyscapes",
    "FishyscapesStatic": "datasets/fishyscapes",
    "RoadAnomaly": "datasets/RoadAnomaly_jpg",
    "StreetHazards": "datasets/streethazards",
}

# Generated sets, `Cityscapes_{domain}`: the output of ControlNet/style_transfer.py.
GENERATED_ROOT = "images/style_transfer"

# Generators by name. Sets of the default one are in `GENERATED_ROOT/{domain}`, named `Cityscapes_{domain}`; those
# of another are in `GENERATED_ROOT/{generator}/{domain}`, named `Cityscapes_{generator}_{domain}`. A name added
# here stands for a folder of sets that another tool made.
DEFAULT_GENERATOR = "controlnet"
# Made by relis/corrupt.py --method; the others by ControlNet/style_transfer.py --generator.
TRANSFER_METHODS = ("histogram", "fourier")
GENERATORS = (DEFAULT_GENERATOR, "img2img", "translate", "edit", *TRANSFER_METHODS)

# Domains with a name, and how the prompt ends in each; any other text after --domain is used verbatim.
DOMAINS: dict[str, str] = {
    "clear": "on a clear day",
    "fog": "in fog",
    "night": "in night",
    "rain": "in rain",
    "snow": "in snow",
    "india": "in india",
    "dusk": "in dusk",
}

# What --generator edit asks for, by domain; `INSTRUCTION` is for other domains, with their words, such as "in thick
# smoke", in place of {domain}.
INSTRUCTIONS: dict[str, str] = {
    "clear": "Change the weather to a clear day. Keep the camera and the shape and place of every object.",
    "fog": "Change the weather to dense fog. Keep the camera and the shape and place of every object.",
    "night": "Change the time of day to night. Keep the camera and the shape and place of every object.",
    "rain": "Change the weather to rain on a wet road. Keep the camera and the shape and place of every object.",
    "snow": "Change the weather to snow on the ground. Keep the camera and the shape and place of every object.",
    "india": "Change the street to a street in India. Keep the camera and the shape and place of every object.",
    "dusk": "Change the time of day to dusk. Keep the camera and the shape and place of every object.",
}
INSTRUCTION = "Show the same street {domain}. Keep the camera and the shape and place of every object."

# The set with real images of a domain, with which the generated ones are compared: data set and condition.
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
ZOO_FILE = "genval/segmenters/zoo.json"
ZOO: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / ZOO_FILE).read_text(encoding="utf-8"))

# Folders whose Python code may run, besides the project's and that of installed packages: `.py` configs of `mmseg:` and
# modules of `module:function`. For code from elsewhere scripts ask for --trust_code.
TRUSTED_FOLDERS: tuple[str, ...] = ()

# Segmenters of the mini world: name -> specification (see genval/segmenters).
MINI_SEGMENTERS: dict[str, str] = presets.SEGMENTERS

# `--preset NAME`: defaults that replace those of a script, by script.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The published training: everything in float32, no averaging, no mirroring, no caption dropped.
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
    "mini": presets.PRESET,
}
