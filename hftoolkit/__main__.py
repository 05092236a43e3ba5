"""``python -m hftoolkit`` and ``accelerate launch -m hftoolkit``."""

import os
import sys

if __name__ == "__main__":
    if sys.path[0] == os.getcwd():  # put there by -m; modules that happen to lie there are none of ours
        del sys.path[0]
    from hftoolkit.cli import main

    main()
