"""Captions of images: BLIP writes them, CLIP ranks phrases for them, and a filter removes words of weather.

- `captioning`: the resumable stage of `ControlNet/clip_int.py`; `settings`: its settings; `sources`: its images;
- `interrogator`: CLIP-interrogator's method; `blip`, `clip`: the two models;
- `filter`: the filter of words and phrases.
"""
