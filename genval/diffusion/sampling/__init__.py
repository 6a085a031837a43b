"""From label masks and prompts to images."""
