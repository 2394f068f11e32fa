"""MLflow's web interface on the mirror."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.track.mirror import default_uri


def ui(out: Path, port: int) -> int:
    """Serve the interface on 127.0.0.1 until Ctrl-C; MLflow's exit status."""
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", default_uri(out)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes nobody asked for
    print(f"MLflow at http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    try:
        return subprocess.run(command, env={**os.environ, **quiet}, check=False).returncode
    except KeyboardInterrupt:
        return 0
