"""Inpainting objects into street images, and refining them."""
