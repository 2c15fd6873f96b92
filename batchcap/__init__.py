"""batchcap: captions every image in a collection and makes the captions searchable with SQL."""

__version__ = "0.1.0"
