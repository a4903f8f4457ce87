"""The logger ``evalpipe``. The logging module is loaded when a hook is made, and not by importing evalpipe."""

from __future__ import annotations

from typing import Any, Final


class _Log:
    """What of ``logging.Logger`` the hook uses."""

    __slots__ = ()

    def debug(self, text: str, *values: object) -> None:
        """What only matters while something is looked for."""
        _logger().debug(text, *values, stacklevel=2)

    def info(self, text: str, *values: object) -> None:
        """What an operator may want to know."""
        _logger().info(text, *values, stacklevel=2)

    def warning(self, text: str, *values: object) -> None:
        """What somebody should look at."""
        _logger().warning(text, *values, stacklevel=2)


def _logger() -> Any:
    import logging

    return logging.getLogger("evalpipe")


def load() -> None:
    """Load logging, by whoever makes the hook: it registers what a fork does, and must not do so during one."""
    _logger()


def to_stderr() -> None:
    """Everything to stderr, as EVALPIPE_DEBUG asks for."""
    import logging

    logger = _logger()
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)


log: Final = _Log()
