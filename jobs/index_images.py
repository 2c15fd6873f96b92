"""Captions a collection on a Ray cluster: `python jobs/index_images.py SOURCE... --catalog URL --store DIR`.

The options are those of `batchcap index`; the cluster is the one whose job this is, or that this machine
belongs to, unless `--address` names another.
"""

import sys

from batchcap.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["index", "--address", "auto"]
    main()
