"""MLflow as a mirror of the run folders.

The disk is the truth. One process reads the folders and sends what is new, so training never
waits for MLflow, and the mirror can be deleted and rebuilt at any time. What has been sent is
remembered in tags of the MLflow run itself (they vanish with the store), and every value carries
a time that follows from the run, so a value sent again after a kill is the same row and is
stored once.

``bench/track/mirror.py`` is the only file that knows MLflow, and it imports it when it is used.
"""

from bench.track.follow import Follower, sync
from bench.track.mirror import MirrorError, SyncReport, default_uri, init_store
from bench.track.ui import ui

__all__ = ["Follower", "MirrorError", "SyncReport", "default_uri", "init_store", "sync", "ui"]
