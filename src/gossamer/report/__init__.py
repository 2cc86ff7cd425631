"""What was done, as HTML and as terminal text."""
