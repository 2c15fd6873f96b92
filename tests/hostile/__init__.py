"""Hostile pictures: files that are odd, damaged, mislabelled or made to harm, and what becomes of each.

`tests/golden/hostile.json` says what: whatever decodes pictures for people must agree with that table.
"""

from tests.hostile.files import HostileFile, golden, hostile_files, make_hostile

__all__ = ["HostileFile", "golden", "hostile_files", "make_hostile"]
