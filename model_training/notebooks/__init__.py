"""Notebooks that show what the small, the medium and the large model make of 20 photographs."""
