"""`python -m infrastructure.embedded up` and its siblings."""

import sys

from infrastructure.embedded.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
