"""Segmenters on labelled images: one forward pass an image, and everything that is kept of it."""
