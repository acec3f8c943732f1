"""What every worker process does before its first actor: log as we do, and, as a spare, load what any actor needs.

Ray calls set_up() in each process of the job (worker_process_setup_hook). The
imports are the greater part of an actor's start; a process that waits as a
spare has them behind it, any other loads only its own role's. `rayapp chaos
prove` names a folder of planted bugs in the environment, to show that the judge
finds them; nothing else ever loads that module.
"""

from __future__ import annotations

import importlib
import os
import time

from rayapp.log import log_to_stderr

PLANTED_BUGS_VARIABLE = "RUUVI_PLANTED_BUGS"
SPARE_VARIABLE = "RUUVI_SPARE"
"""Set in a process that waits as a spare (rayapp.runtime.spares)."""
LOADED = (
    "numpy", "pyarrow", "pyarrow.compute", "pydantic", "fastavro", "pyruhvro", "confluent_kafka", "psycopg2", "pgpq",
    "actors.consume.actor", "actors.detect.actor", "actors.ingest.actor", "actors.write.actor",
)  # fmt: skip


def set_up() -> None:
    """Prepare this process."""
    log_to_stderr()
    if SPARE_VARIABLE in os.environ:
        # A spare has time; those who work on the same cores have not. Only root may become quick again.
        may_step_back = os.geteuid() == 0
        before = os.getpriority(os.PRIO_PROCESS, 0)
        if may_step_back:
            os.setpriority(os.PRIO_PROCESS, 0, 19)
        for name in LOADED:
            began_s = time.monotonic()
            importlib.import_module(name)
            time.sleep(time.monotonic() - began_s)
        if may_step_back:
            os.setpriority(os.PRIO_PROCESS, 0, before)
    plant_if_named()


def plant_if_named() -> None:
    """Plant the bugs of the folder that the environment names, if it names one."""
    folder = os.environ.get(PLANTED_BUGS_VARIABLE)
    if folder:
        importlib.import_module("rayapp.chaos.planted").plant(folder)
