"""Wires LiveInsight's stages to AWS, or to an embedded AWS on one machine."""
