"""Measurements: what figures in the documentation rest on. Each can be run by hand; a test runs each, short."""
