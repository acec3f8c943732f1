"""Entry point of `rayapp` and `python -m rayapp`."""

from __future__ import annotations

import sys

from rayapp.cli import cli
from rayapp.errors import ConfigurationError, DependencyUnavailable, IncompatibleSchema, RayappError

EXIT_CONFIGURATION = 2
EXIT_DEPENDENCY = 3
EXIT_OTHER = 1


def main() -> None:
    """Run the command line; known errors are one message and an exit code, never a traceback."""
    try:
        cli(standalone_mode=True)
    except (ConfigurationError, IncompatibleSchema) as error:
        print(f"rayapp: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
    except DependencyUnavailable as error:
        print(f"rayapp: {error}", file=sys.stderr)
        sys.exit(EXIT_DEPENDENCY)
    except RayappError as error:
        print(f"rayapp: {error}", file=sys.stderr)
        sys.exit(EXIT_OTHER)


if __name__ == "__main__":
    main()
