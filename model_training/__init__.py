"""Trains and evaluates the captioners that batchcap runs."""
