"""The ecosystem, under faults: each test belongs to a cell of a grid, and the docs show what came of it."""
