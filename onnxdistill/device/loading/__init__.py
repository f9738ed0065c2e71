"""Latency under load: queues of requests, and clients that call back to back."""
