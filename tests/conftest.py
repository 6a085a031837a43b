"""Fixtures that tests of several packages share."""

pytest_plugins = ("diffusion_world", "captions_world", "grounding_world")
