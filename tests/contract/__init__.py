"""Contract: what every method does on every kind of model. A test's file is named for the property that it proves."""
