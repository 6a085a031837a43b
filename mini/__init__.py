"""The mini world: rendered streets, and the recipe that trains the small checkpoints on them."""
