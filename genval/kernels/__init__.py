"""Triton kernels that compute a whole batch of images on an NVIDIA GPU."""
