"""`python -m worker`: answer runs until told to stop. Start as many as you like, on as many machines."""

import uvloop

from shared import logs
from shared.settings import read
from worker.app import serve

if __name__ == "__main__":
    settings = read()
    logs.configure(settings)
    uvloop.run(serve(settings))
