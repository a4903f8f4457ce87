"""Pages for people: each is sent as one file with everything in it, and may load nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

LABEL, ROLLOUTS, ALERTS = "/label", "/rollouts", "/alerts"
"""Open to everybody: without a key a page shows nothing but a form that asks for one."""

_BASES = ("base.css", "base.js")
"""What pages have in common; each is put where a page names it in a comment."""

router = APIRouter(include_in_schema=False)


@router.get(LABEL)
def get_label_page() -> HTMLResponse:
    """The page on which people label records, one at a time."""
    return _answer("label.html")


@router.get(ROLLOUTS)
def get_rollouts_page() -> HTMLResponse:
    """The page that shows rollouts as they go, and takes orders."""
    return _answer("rollouts.html")


@router.get(ALERTS)
def get_alerts_page() -> HTMLResponse:
    """The page that shows alerts, and on which people take and silence them."""
    return _answer("alerts.html")


def _answer(name: str) -> HTMLResponse:
    html, policy = page(name)
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(html, headers=headers)


@cache
def page(name: str) -> tuple[str, str]:
    """A page and its content security policy, which lets run what is in the page and nothing else."""
    html = _static(name)
    for base in _BASES:
        html = html.replace(f"/* {base} */\n", _static(base))
    return html, "; ".join([
        "default-src 'none'",
        f"script-src {_hashes(html, 'script')}",
        f"style-src {_hashes(html, 'style')}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ])  # fmt: skip


def _static(name: str) -> str:
    return resources.files("evalpipe.api").joinpath("static", name).read_text(encoding="utf-8")


def _hashes(html: str, tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
