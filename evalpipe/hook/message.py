"""A task message as Celery's own producer writes it, built without Celery.

Celery's message protocol, version 2, in the envelope of kombu's Redis transport: a JSON object, pushed to the left of
the list that is named like the queue (kombu appends a priority only above 0, and looks up bindings only for named
exchanges; this message goes through the anonymous one). A contract test holds it to what the installed Celery writes
and consumes.

The body is not in base64, which is kombu's default, but in plain text, which is its other documented encoding
(``body_encoding`` utf-8): 15 % fewer bytes, and half the CPU on both sides. Because the body is JSON inside JSON inside
JSON, and a JSON text has no control characters, quoting it is two replacements.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_EMBED: Final = '{\\"callbacks\\": null, \\"errbacks\\": null, \\"chain\\": null, \\"chord\\": null}'


def task_message(
    task: str, blob: str | None, *, message_id: str, origin: str, summary: str, headers: Mapping[str, Any]
) -> bytes:
    """The message that runs ``task(blob)``, or ``task()`` if there is no blob.

    Args:
        task: the task's name, which is also the queue's.
        blob: the task's one argument; a JSON text. None for a task that takes none.
        message_id: names the task and its delivery; a UUID.
        origin: who sends it, for people.
        summary: what monitors show for the arguments; the blob itself would double the message.
        headers: further headers, which a monitor can read without decoding the body.
    """
    envelope = {
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": message_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": message_id,
            "parent_id": None,
            "argsrepr": summary,
            "kwargsrepr": "{}",
            "origin": origin,
            "ignore_result": True,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
            **headers,
        },
        "properties": {
            "correlation_id": message_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": task},
            "priority": 0,
            "body_encoding": "utf-8",
            "delivery_tag": message_id,
        },
    }
    quoted = "" if blob is None else blob.replace("\\", "\\\\\\\\").replace('"', '\\\\\\"')
    arguments = "" if blob is None else f'\\"{quoted}\\"'
    text = f'{{"body": "[[{arguments}], {{}}, {_EMBED}]", {json.dumps(envelope, ensure_ascii=False)[1:]}'
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 has no form for
        return text.encode("utf-8", "replace")
