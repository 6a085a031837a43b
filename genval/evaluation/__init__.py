"""Segmenters on labelled images: one forward pass per image, and what is saved of it."""
