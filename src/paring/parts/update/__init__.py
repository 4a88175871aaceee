"""Updates: what happens to the gates once the optimizer has stepped."""
