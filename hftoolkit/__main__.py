"""``python -m hftoolkit`` and ``accelerate launch -m hftoolkit``."""

from hftoolkit.cli import main

if __name__ == "__main__":
    main()
