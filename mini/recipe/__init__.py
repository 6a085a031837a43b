"""How the small checkpoints are trained: an autoencoder, a text-to-image UNet, and segmenters."""
