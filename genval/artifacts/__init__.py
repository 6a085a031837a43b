"""The records a stage leaves beside its outputs: manifests and settings."""
