"""Speed and memory, measured on this machine, beside a peer where one is installable."""
