"""Floor 4: one file a published method. A new file here is a new method, everywhere; see CONTRIBUTING."""
