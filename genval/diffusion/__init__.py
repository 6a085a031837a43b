"""Latent diffusion steered by label masks: loading, training and sampling.

Every size and constant is read from the models' own configs, so that Stable Diffusion 1.5 and a model a hundred times
smaller go through the same code.
"""
