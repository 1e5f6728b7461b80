"""LiveInsight on AWS: what `python -m infra` does."""
