"""A process in the place of a rank: it can't do its part, says so unless it is to be silent, and ends."""

import os
import pickle
import sys
from multiprocessing.connection import Connection

if __name__ == "__main__":
    steps = Connection(int(sys.argv[1]))
    steps.recv_bytes()  # the setup
    if "FAKE_RANK_SILENT" not in os.environ:
        steps.send_bytes(pickle.dumps("rank 1: no room"))
    sys.exit(1)
