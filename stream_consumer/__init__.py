"""Folds the stream's events into sessions and roll-ups; owns their stored items."""
