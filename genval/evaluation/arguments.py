"""The flags that every script which runs segmenters on labelled images has."""

from __future__ import annotations

import argparse
import os

import path_dicts
from genval.runtime import cli

SAVED = ("predictions", "logits", "features")


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What is evaluated, where it is, on what device; returns the group of what is kept, for a script's own flags."""
    what = parser.add_argument_group("what is evaluated")
    what.add_argument("--model_arch", required=True, help="models from path_dicts.py or specifications, or all")
    what.add_argument("--src_dataset", default="Cityscapes", help="what the models were trained on; only recorded")
    what.add_argument("--list_models", action=cli.Show, show=list_models_on_disk, help="list the models and end")
    what.add_argument("--class_map", help="what the models' classes are, if not the 19: a JSON file of ids, or a name")
    what.add_argument("--trg_dataset", required=True, type=cli.dataset_list, help="Cityscapes, ACDC, Cityscapes_fog")
    what.add_argument("--cond", type=cli.comma_list, default="all", help="conditions, e.g. fog,night")
    what.add_argument("--scene", type=cli.comma_list, default="all", help="cities, recordings or folders")
    what.add_argument("--split", help="a split's folder, or all; by default the data set's usual one")
    what.add_argument(
        "--gate",
        action="store_true",
        help="of a generated set only what check_generated.py kept; its results are those of {trg_dataset}-gated",
    )
    where = parser.add_argument_group("where things are")
    where.add_argument("--root_exp_dir", default="results/eval", help="where results are saved")
    where.add_argument("--datasets_dir", default="datasets", help="the folder of the data sets")
    where.add_argument("--generated_dir", default=path_dicts.GENERATED_ROOT, help="the folder of the generated sets")
    where.add_argument("--trg_root", help="the data set's own folder, where it is not found")
    kept = parser.add_argument_group("what is kept")
    kept.add_argument(
        "--logit_pixels",
        type=pixel_number,
        default=20000,
        help="pixels an image whose logits are saved, drawn at random; -1 is all",
    )
    kept.add_argument("--fp16", action="store_true", help="save logits and features as float16, not float32")
    kept.add_argument("--layer", help="the module whose output the features are; by default the model's backbone")
    cli.add_bad_input_arguments(parser)
    cli.add_run_arguments(parser)
    cli.add_device_arguments(parser)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch_size", type=cli.positive_int, default=1, help="images a forward pass")
    speed.add_argument("--compile", action="store_true", help="torch.compile: minutes at first, then faster on a GPU")
    speed.add_argument("--channels_last", action="store_true", help="memory layout that suits a GPU's convolutions")
    workers = min(8, os.cpu_count() or 1)
    speed.add_argument("--num_workers", type=cli.positive_int, default=workers, help="threads that decode images")
    return kept


def list_models_on_disk() -> str:
    """What `--list_models` prints: each name, and whether its checkpoint is here."""
    from genval.segmenters import describe_segmenters  # imports torch, which --help must not

    return describe_segmenters()


def pixel_number(text: str) -> int:
    """An argparse type: a number of pixels above zero, or -1 for all."""
    return -1 if text == "-1" else cli.positive_int(text)


def saved_kinds(text: str) -> list[str]:
    """An argparse type: what of `SAVED` to save, by commas, or none."""
    kinds = [] if text == "none" else cli.comma_list(text)
    unknown = [kind for kind in kinds if kind not in SAVED]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected none or some of {','.join(SAVED)}, found {unknown[0]!r}")
    return kinds


def add_saved_set_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """`--model_arch --trg_dataset --cond --scene --root_exp_dir`: evaluated sets on the disk."""
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model_arch", required=True, help="models as given to relis/eval.py, or all")
    what.add_argument("--src_dataset", default="Cityscapes", help="what the models were trained on; only recorded")
    what.add_argument("--trg_dataset", required=required, help="Cityscapes, ACDC, Cityscapes_fog, ...")
    what.add_argument("--cond", type=cli.comma_list, default="all", help="conditions, paired with --scene if as many")
    what.add_argument("--scene", type=cli.comma_list, default="all", help="cities, recordings or folders")
    what.add_argument("--root_exp_dir", default="results/eval", help="the results of relis/eval.py")


def add_calibrating_set_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What calibrates, how often, and where the result is kept; returns the group, for how it is done."""
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--protocol",
        choices=["none", "cityscapes", "synthetic"],
        default="none",
        help="the papers' splits: lindau and munster calibrate and frankfurt tests, or each generated domain of "
        "--domains calibrates and the real one tests; none: what the flags name",
    )
    group.add_argument("--domains", type=cli.comma_list, default="fog,night,rain,snow", help="of --protocol synthetic")
    group.add_argument("--calib_dataset", default="Cityscapes", help="the data set that calibrates")
    group.add_argument("--calib_cond", type=cli.comma_list, default="all", help="its conditions")
    group.add_argument("--calib_scene", type=cli.comma_list, default="all", help="its scenes, e.g. lindau,munster")
    group.add_argument("--subsamples", type=cli.positive_int, help="calibrate on so many images, drawn at random")
    group.add_argument("--seeds", type=seed_list, default="0", help="of whatever is drawn at random, e.g. 0,1,2")
    group.add_argument("--calibration_dir", default="results/calibration", help="where temperatures are kept")
    return group


def add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    """What calibrates, and how."""
    group = add_calibrating_set_arguments(parser)
    group.add_argument("--n_clusters", type=cli.positive_int, default=1, help="clusters of images; 1 is vanilla")
    group.add_argument("--cluster_method", choices=["kmeans", "gmm"], default="kmeans")
    group.add_argument("--calib_metric", choices=["ece", "nll"], default="ece", help="what a temperature minimises")
    group.add_argument("--per_class_temperature", action="store_true", help="one for each predicted class")
    group.add_argument(
        "--hardest",
        type=share_list,
        default="1",
        help="calibrate on this share of the images, those with the smallest shares of right pixels; of several, e.g. "
        "1,0.5, on each; 1 is all, as published",
    )


def share_list(text: str) -> list[float]:
    """An argparse type: `1,0.5` to `[1.0, 0.5]`, each above 0 and at most 1, in percent of at most six digits."""
    try:
        shares = [float(part) for part in cli.comma_list(text)]
    except ValueError:
        shares = [0.0]
    if not all(0 < share <= 1 and abs(float(f"{100 * share:g}") / 100 - share) < 1e-12 for share in shares):
        raise argparse.ArgumentTypeError(f"expected shares above 0 and at most 1, of six digits, found {text!r}")
    return list(dict.fromkeys(shares))


def seed_list(text: str) -> list[int]:
    """An argparse type: `0,1,2` to `[0, 1, 2]`."""
    return [cli.seed_number(part) for part in cli.comma_list(text)]
