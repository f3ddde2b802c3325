"""The disk. What is not committed here has not happened."""
