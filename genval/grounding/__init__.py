"""Detecting objects by name and segmenting them, through transformers.

- `masks`: the resumable stage of `ood_objects/get_masks.py`; `settings`: its settings;
- `detector`: GroundingDINO and the detectors by type; `owlv2`; `detections`: what they give;
- `outliner`: Segment Anything; `text_masks`: SAM 3 from the text; `similarity`: CLIP's check of a mask's content;
- `loading`, `original`: loading of models, also from the original files; `groundingdino_keys`, `sam_keys`: their keys;
- `curation`: contact sheets and the file in which a person accepts or rejects masks.
"""
