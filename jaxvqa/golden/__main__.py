"""The command of `jaxvqa.golden.runner`: python -m jaxvqa.golden PATH…"""

import sys

from jaxvqa.golden import runner

if __name__ == "__main__":
    sys.exit(runner.main())
