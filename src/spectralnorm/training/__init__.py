"""Data, models and the training loop."""
