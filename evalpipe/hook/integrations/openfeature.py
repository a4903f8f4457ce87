"""An OpenFeature provider: the variants of the control plane's rollouts as string flags, resolved in the process.

from openfeature import api
from evalpipe.hook.integrations.openfeature import EvalpipeProvider

api.set_provider(EvalpipeProvider(hook))
api.get_client().get_string_value("refund-prompt", "baseline", EvaluationContext(targeting_key=user_id))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import FlagNotFoundError, TypeMismatchError
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata

if TYPE_CHECKING:
    from evalpipe.hook.client import Hook


class EvalpipeProvider(AbstractProvider):
    """Resolves a rollout's name to the variant of the targeting key, as ``hook.variant`` does.

    Nothing is asked over the network: the hook pulls the weights in the background. The hook stays the application's;
    shutting this provider down does not shut it down.

    Args:
        hook: the application's.
    """

    def __init__(self, hook: Hook) -> None:
        super().__init__()
        self._hook = hook

    def get_metadata(self) -> Metadata:
        """The provider's name."""
        return Metadata(name="evalpipe")

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """The variant of the context's targeting key; without a key the baseline, as the default.

        Raises:
            FlagNotFoundError: there is no rollout of this name, or nothing is known of any yet.
        """
        self._find(flag_key)
        unit = evaluation_context.targeting_key if evaluation_context is not None else None
        variant = self._hook.variant(flag_key, unit or "")
        return FlagResolutionDetails(variant, variant=variant, reason=Reason.SPLIT if unit else Reason.DEFAULT)

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """Raises: a variant is a name."""
        self._refuse(flag_key)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """Raises: a variant is a name."""
        self._refuse(flag_key)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """Raises: a variant is a name."""
        self._refuse(flag_key)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        """Raises: a variant is a name."""
        self._refuse(flag_key)

    def _find(self, flag_key: str) -> Any:
        document = self._hook._process.control.document  # noqa: SLF001 - of the same house
        found = document and document.rollout(flag_key, self._hook.release.environment)
        if not found:
            raise FlagNotFoundError(
                f"the control plane has no rollout {flag_key!r} for this service and environment"
                if document
                else "the control plane has not been heard of yet"
            )
        return found

    def _refuse(self, flag_key: str) -> NoReturn:
        self._find(flag_key)
        raise TypeMismatchError(f"{flag_key!r} is a rollout, and its variants are names: ask for a string")
