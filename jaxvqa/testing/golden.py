"""The former name of the command `python -m jaxvqa.golden`."""

import sys

from jaxvqa.golden.runner import main

if __name__ == "__main__":
    sys.exit(main())
