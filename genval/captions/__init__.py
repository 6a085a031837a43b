"""Captions of images: BLIP writes them, CLIP ranks phrases for them, and a filter takes the weather out of them."""
