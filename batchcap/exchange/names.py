"""How people and other programs name files, and what the catalog calls them."""

import os

from batchcap.storage.uris import FILE_SCHEME, absolute_uri, path_to_uri, scheme_of, uri_to_path


def uri_of(name: str, folder: str = "") -> str:
    """The uri of a file or folder that is named, be it there or not; a uri stays what it is.

    Args:
        name: a path or a uri.
        folder: that a relative path starts from; by default the one we are in.
    """
    if scheme_of(name) is None:
        return absolute_uri(os.path.join(folder, name))
    return path_to_uri(uri_to_path(name)) if name.startswith(f"{FILE_SCHEME}/") else name
