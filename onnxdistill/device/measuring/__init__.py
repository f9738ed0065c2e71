"""Timing sessions, and what the times come to."""
