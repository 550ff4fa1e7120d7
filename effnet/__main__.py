"""``python -m effnet``: the same as the command ``effnet``."""

from effnet.cli import main

if __name__ == "__main__":
    main()
