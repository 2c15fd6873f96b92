"""From the bytes of a picture to its caption."""

# TensorFlow brings an SQLite of its own, without full-text search, and whichever is loaded first serves the
# whole process. So Python's, which the catalog needs, is loaded before any module here loads TensorFlow.
import sqlite3  # noqa: F401
