"""Fixtures that tests of several packages share."""

pytest_plugins = ("diffusion_world",)
