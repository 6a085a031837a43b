"""Training a ControlNet: settings, data, logs and runs."""
