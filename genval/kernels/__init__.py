"""Triton kernels that count the pixels of a whole batch on an NVIDIA GPU, and the layout of their counts."""
