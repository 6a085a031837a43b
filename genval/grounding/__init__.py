"""Detecting objects by name and segmenting them: GroundingDINO and Segment Anything, through transformers.

- `masks`: the resumable stage of `ood_objects/get_masks.py`; `settings`: its settings;
- `detector`: GroundingDINO; `outliner`: Segment Anything; `similarity`: CLIP's check of a mask's content;
- `loading`, `original`: loading of models, also from the original files; `groundingdino_keys`, `sam_keys`: their keys;
- `curation`: contact sheets and the file in which a person accepts or rejects masks.
"""
