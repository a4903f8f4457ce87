"""Which tests go to one worker of pytest-xdist, with ``--dist loadgroup``; all others go to whoever is free.

A mark ``xdist_group`` says the same, and does nothing with pytest 9.2: pytest-xdist 3.8 hands it on inside of a test's
id, which is fixed by then.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

GROUPS = {
    "tests/spine/test_alerting_lives.py": "one house",
    "tests/spine/test_rollout_lives.py": "one town",
    "tests/spine/test_chat.py": "demos, that measure time",
    "tests/spine/test_demo.py": "demos, that measure time",
    "tests/contract/test_hook_callbacks.py": "LiteLLM, that is long in coming",
}


class GroupsScheduling(LoadScopeScheduling):
    """Large groups first, then test by test."""

    def _split_scope(self, nodeid: str) -> str:
        return GROUPS.get(nodeid.partition("::")[0], nodeid)
