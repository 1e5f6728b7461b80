"""LiveInsight's whole path on one machine."""
