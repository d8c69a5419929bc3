"""`python -m spectralnorm`: the command line."""

from spectralnorm.cli import main

if __name__ == "__main__":
    main()
