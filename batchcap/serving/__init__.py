"""Captions over HTTP, and a web page to caption, search and browse: `batchcap serve`.

`serving.app.create_app` makes the application, `serving.server.serve` runs it.
"""
