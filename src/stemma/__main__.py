"""`python -m stemma` is `stemma`."""

from stemma.cli import main

if __name__ == "__main__":
    main()
