"""`forget_file`: erases what catalog and Parquet say of a file.

The catalog comes first, in one transaction: from then on the parts that held rows of the file are pending,
with the rows that are left. Then each of them is written again, and takes the place of its old file in one
renaming. Killed in between, the next run, or the next `forget`, does the rest.
"""

from pathlib import Path

from batchcap.catalog import Catalog, Forgotten
from batchcap.errors import StoreError
from batchcap.parts import open_store, seal_pending, stamped_owner


def forget_file(catalog: Catalog, store: Path, uri: str) -> Forgotten:
    """Erases a file's captions from catalog and Parquet; the file itself is not touched.

    What was put aside, such as old catalogs and damaged parts, is not looked at; nor are sidecars.

    Args:
        catalog: opened for writing.
        store: the folder of its Parquet parts.
        uri: of the file.

    Raises:
        CatalogBusyError: a run holds the catalog.
        CatalogError: it knows no such file, or can't be written.
        StoreError: the store is not this catalog's, or can't be written.
    """
    with catalog.lock():
        if catalog.parts() and stamped_owner(store) is None:
            raise StoreError(f"the Parquet files of this catalog are not in {store}; see --store")
        opened = open_store(store, catalog.uuid)
        seal_pending(catalog, opened)
        forgotten = catalog.forget(uri)
        seal_pending(catalog, opened)
        catalog.scrub()
    return forgotten
