"""What keeps the documentation true to the code; not part of the package."""
