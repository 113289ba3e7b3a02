"""`python -m tests.support.few_files N`: serve the API in a process that may open N files."""

import resource
import sys

from agent_relay.api.__main__ import main

if __name__ == "__main__":
    files = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    main([])
