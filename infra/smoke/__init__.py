"""Checks of a running deployment, through its public addresses only."""
