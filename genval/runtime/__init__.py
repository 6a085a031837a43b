"""What every stage needs and nothing of what it computes: errors, paths, files, seeds, flags and progress."""
