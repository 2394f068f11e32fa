"""``python -m bench.track OUT [--uri URI]``: follow until standard input is closed."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from bench.track.follow import follow_until
from bench.track.mirror import Mirror, MirrorError, import_mlflow


def main(arguments: list[str] | None = None) -> int:
    """``python -m bench.track OUT [--uri URI]``: follow until standard input is closed."""
    parser = argparse.ArgumentParser(prog="python -m bench.track", description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--uri")
    options = parser.parse_args(arguments)
    closed = threading.Event()

    def watch() -> None:
        sys.stdin.buffer.read()
        closed.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        import_mlflow()
        follow_until(Mirror(options.out, options.uri), closed.wait)
    except MirrorError as error:
        sys.stderr.write(f"warning: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
