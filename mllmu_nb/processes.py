"""Work in separate processes, which end when the process that started them ends."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Ends this process when the process that started it has ended, for whatever reason."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
