"""What was running when a model was called. Standard library only, and cheap to import: applications load it.

Written out, because the `dataclasses` module would be a third of what `import evalpipe` costs an application.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn


class _Frozen:
    __slots__ = ("_hash", "_release_id")

    _hash: int
    _release_id: str

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed: make another one (field {name!r})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed: make another one (field {name!r})")


class Release(_Frozen):
    """What was running: a service's variant and the six versions that can change its answers.

    ``variant`` is the arm in a rollout, for example ``baseline`` or ``canary``. A version that does not apply is "".
    """

    __slots__ = ("service", "variant", "environment", "model", "prompt", "retrieval", "index", "tool_schema",  # noqa: RUF023 - their order
                 "data_pipeline")  # fmt: skip
    __match_args__ = ("service", "variant", "environment", "model", "prompt", "retrieval", "index", "tool_schema",
                      "data_pipeline")  # fmt: skip

    service: str
    variant: str
    environment: str
    model: str
    prompt: str
    retrieval: str
    index: str
    tool_schema: str
    data_pipeline: str

    def __init__(
        self,
        service: str = "",
        variant: str = "baseline",
        environment: str = "production",
        model: str = "",
        prompt: str = "",
        retrieval: str = "",
        index: str = "",
        tool_schema: str = "",
        data_pipeline: str = "",
    ) -> None:
        values = (service, variant, environment, model, prompt, retrieval, index, tool_schema, data_pipeline)
        for name, value in zip(FIELDS, values, strict=True):
            object.__setattr__(self, name, value)
        # Rows of the meter and caches have it in their keys.
        object.__setattr__(self, "_hash", hash(values))

    @property
    def release_id(self) -> str:
        """Sixteen hex digits that name this exact release."""
        try:
            return self._release_id
        except AttributeError:
            from hashlib import sha256

            digest = sha256("\x1f".join(self._values()).encode("utf-8", "surrogatepass")).hexdigest()[:16]
            object.__setattr__(self, "_release_id", digest)
            return digest

    def with_(self, **changes: str) -> Release:
        """The same release but for ``changes``.

        Raises:
            TypeError: it has no such field.
        """
        return Release(**{**dict(zip(FIELDS, self._values(), strict=True)), **changes})

    def _values(self) -> tuple[str, ...]:
        return tuple(getattr(self, name) for name in FIELDS)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not Release:
            return NotImplemented
        return self._hash == other._hash and self._values() == other._values()

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Release({', '.join(f'{name}={getattr(self, name)!r}' for name in FIELDS)})"

    def __reduce__(self) -> tuple[type[Release], tuple[str, ...]]:
        return Release, self._values()


FIELDS: Final = Release.__slots__
"""The names of a release's fields, in order."""
