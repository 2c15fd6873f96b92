"""Captions on their way to other programs and back: tables, text files and XMP sidecars."""
