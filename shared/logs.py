"""How processes write their logs: a line an event, `noun.verb key=value`, so that the verb can be searched for."""

import logging
import sys

from shared.settings import Settings


def configure(settings: Settings) -> None:
    """Write to standard error; libraries speak from WARNING on."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    for ours in ("api", "worker", "shared"):
        logging.getLogger(ours).setLevel(settings.log_level)
