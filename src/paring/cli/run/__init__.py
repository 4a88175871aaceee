"""A training run: its options, the model, the trainer, and what is left behind."""
