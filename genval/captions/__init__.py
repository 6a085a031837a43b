"""Captions of images: BLIP writes them, CLIP ranks phrases for them, and a filter removes words of weather.

- `captioning`: the resumable stage of `ControlNet/clip_int.py`; `settings`: its settings; `sources`: its images;
- `interrogator`: CLIP-interrogator's method; `clip`: its ranker; `captioners`: the captioners, `blip` and `chat`;
- `filter`: the filter of words and phrases.
"""
