"""`python -m wsi_dino.cli`: the program where no script is on the path."""

from wsi_dino.cli import main

if __name__ == "__main__":
    main()
