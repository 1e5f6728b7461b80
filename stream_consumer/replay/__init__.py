"""Computing the past again into a generation of its own, comparing the two, and switching over."""
