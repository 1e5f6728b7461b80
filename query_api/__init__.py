"""Answers questions about sites as JSON: reads what the stream consumer stored, caches, and serves the dashboard."""
