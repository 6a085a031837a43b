"""How well segmenters notice objects that they were never shown: on generated pictures, and on public sets.

Reads:  images/ood_objects/refined/{object}/{i}.png and images/ood_objects/masks/{object}/{i}_mask.png (what
        curated.json there says false to is left out, as are pictures with an {i}_mask.txt), or a public set
Writes: results/ood_detection/{set}/{model}.json (figures by picture, and of all pixels under "pooled"), {model}.csv (a
        row a score, with 95 % intervals over pictures), {model}_objects.csv, and {model}/, from which it goes on

    python ood_detection/main_gen_ood.py --model SegFormer-B0
    python ood_detection/main_gen_ood.py --model DLV3+ResNet50,SegFormer-B5 --trg_dataset RoadAnomaly21,RoadObstacle21

One forward pass a picture. The object is the positive class and the negated confidence the score. In the JSON,
`aupr_in` is the AUPR of the OBJECT and `aupr_out` that of the background: published names, unlike the literature's.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from genval.evaluation.arguments import list_models_on_disk
from genval.runtime import cli


def parse_args() -> argparse.Namespace:
    parser = cli.script_parser(__doc__, "ood_detection/main_gen_ood")
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", "--model_name", required=True, help="models as relis/eval.py takes them, or all")
    what.add_argument("--list_models", action=cli.Show, show=list_models_on_disk, help="list all names, and end")
    what.add_argument("--class_map", help="what the models' classes are, if not the 19: a JSON file of ids, or a name")
    what.add_argument("--src_dataset", default="Cityscapes", help="what the models were trained on; only recorded")
    what.add_argument(
        "--trg_dataset",
        type=cli.dataset_list,
        default="generated",
        help="generated, RoadAnomaly21, RoadObstacle21, FishyscapesLostAndFound, FishyscapesStatic, RoadAnomaly, "
        "StreetHazards, or two folders of files of one name, pair:IMAGES,MASKS (0 background, 1 object, 255 void)",
    )
    what.add_argument("--objects", type=cli.comma_list, help="of the generated set only these")
    what.add_argument("--uncurated", action="store_true", help="also what curated.json says false to")
    what.add_argument(
        "--void",
        type=id_list,
        help="ids that are not counted outside the object: labelIds of the street (generated), or the mask's own",
    )
    where = parser.add_argument_group("where things are")
    where.add_argument("--images_dir", default="images/ood_objects/refined", help="generated pictures")
    where.add_argument("--masks_dir", default="images/ood_objects/masks", help="their masks")
    where.add_argument("--positions_dir", default="images/ood_objects/with_positions", help="their boxes and labels")
    where.add_argument("--datasets_dir", default="datasets", help="the folder of the public sets")
    where.add_argument("--trg_root", help="the public set's own folder, where it is not found")
    where.add_argument("--results_dir", default="results/ood_detection", help="where results are saved")
    how = parser.add_argument_group("how")
    how.add_argument("--exact", action="store_true", help="figures of single pixels; 8 MB a picture and score on disk")
    how.add_argument(
        "--components",
        type=score_list,
        default="none",
        help="scores of which whole objects are measured (sIoU, PPV, F1): entropy,confidence,logits,energy, or none",
    )
    how.add_argument(
        "--component_sizes",
        type=size_pair,
        default="500,100",
        help="fewest pixels of a predicted component and of an object (RoadObstacle21: 50,10)",
    )
    how.add_argument("--standardise", help="a data set of known classes: adds the standardised max logit")
    how.add_argument("--standardise_images", type=cli.positive_int, default=100, help="images of it, evenly spaced")
    how.add_argument("--draws", type=cli.positive_int, default=1000, help="resampled sets of an interval")
    cli.add_bad_input_arguments(parser)
    cli.add_run_arguments(parser)
    cli.add_device_arguments(parser)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch_size", type=cli.positive_int, default=1, help="pictures a forward pass")
    speed.add_argument("--compile", action="store_true", help="torch.compile: minutes at first, then faster on a GPU")
    speed.add_argument("--channels_last", action="store_true", help="memory layout that suits a GPU's convolutions")
    workers = min(8, os.cpu_count() or 1)
    speed.add_argument("--num_workers", type=cli.positive_int, default=workers, help="threads that decode pictures")
    return cli.parse(parser)


def main(args: argparse.Namespace) -> None:
    from genval.evaluation.ood_detection import detect_all
    from genval.runtime.tables import markdown_table

    detected = detect_all(args)
    if detected:
        header = ["set", "model", "score", "images", "AUROC %", "from", "to", "FPR95 %", "AUPR object %"]
        rows = [table_row(row) for one in detected for row in one.rows]
        print(markdown_table([*header, "AUROC % an image"], rows, digits=2))
        for one in detected:
            left_out = ", ".join(f"{number} {reason}" for reason, number in one.left_out.items())
            print(f"wrote {one.results.json}" + (f" (left out: {left_out})" if left_out else ""))


def table_row(row: dict[str, Any]) -> list[Any]:
    """What is printed of a row of the table of scores."""
    figures = ("auroc", "auroc_low", "auroc_high", "fpr95", "aupr_object", "image_auroc")
    return [row["set"], row["model"], row["score"], row["images"], *(100 * row[name] for name in figures)]


def id_list(text: str) -> list[int]:
    """An argparse type: ids 0..255 by commas."""
    parts = cli.comma_list(text)
    if not all(part.isdecimal() and int(part) < 256 for part in parts):
        raise argparse.ArgumentTypeError(f"expected ids 0..255 separated by commas, found {text!r}")
    return [int(part) for part in parts]


def score_list(text: str) -> list[str]:
    """An argparse type: names of scores by commas, or none."""
    names = [] if text == "none" else cli.comma_list(text)
    unknown = [name for name in names if name not in ("entropy", "confidence", "logits", "energy", "standardised")]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected none, or entropy, confidence, logits, energy; found {unknown[0]!r}")
    return names


def size_pair(text: str) -> tuple[int, int]:
    """An argparse type: two numbers of pixels."""
    parts = [cli.positive_int(part) for part in cli.comma_list(text)]
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"expected two numbers of pixels, as 500,100, found {text!r}")
    return parts[0], parts[1]


if __name__ == "__main__":
    cli.run(main, parse_args)
