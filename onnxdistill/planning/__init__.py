"""Spending a latency budget: which of many choices do the least damage, where neighbours share the cost of each."""
