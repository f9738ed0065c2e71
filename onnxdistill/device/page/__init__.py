"""A benchmark as one HTML page."""
