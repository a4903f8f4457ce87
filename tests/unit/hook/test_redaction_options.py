"""``Redaction``: kinds, rules of one's own, fields that may leave, pseudonyms."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.errors import ConfigError
from evalpipe.hook.pseudonyms import new_key, pseudonymizer, reveal, reveal_all
from evalpipe.hook.redaction import Redaction, redact, resolve

KEY = base64.b64encode(bytes(range(32))).decode()
TEXT = "bob@example.com, 4111 1111 1111 1111, patient P-1234"


def test_only_the_kinds_that_are_asked_for_are_replaced():
    """All by default, one by its name, none of an empty list."""
    assert Redaction()(TEXT) == redact(TEXT) == "[email], [card], patient P-1234"
    assert Redaction("email")(TEXT) == "[email], 4111 1111 1111 1111, patient P-1234"
    assert Redaction({"card"})(TEXT) == "bob@example.com, [card], patient P-1234"
    assert Redaction(())(TEXT) == TEXT


def test_rules_of_ones_own_run_after_the_kinds_and_in_order():
    """A pattern as text or compiled becomes its label, a function does what it does; short texts reach them, too."""
    own = Redaction(rules=[(r"P-\d{4}", "patient"), (re.compile("(?i)CAFE"), "place"), lambda text: text.upper()])
    assert own(TEXT + " in a cafe") == "[EMAIL], [CARD], PATIENT [PATIENT] IN A [PLACE]"
    assert Redaction(rules=[("Bob", "name")])("Bob") == "[name]"


def test_a_redaction_cannot_be_changed():
    """One hook has one; to change it could let texts out."""
    own = Redaction()
    with pytest.raises(AttributeError, match="make another"):
        own.keep = None
    with pytest.raises(AttributeError, match="make another"):
        del own.keep


def test_the_option_takes_what_it_took_and_a_redaction():
    """True, False, a function (after the kinds), a Redaction with its allow-list."""
    assert resolve(True) == (redact, None)
    assert resolve(False)[0](TEXT) == TEXT
    function, keep = resolve(lambda text: text.replace("[email]", "x"))
    assert (function("a@b.io!!"), keep) == ("x!!", None)
    own = Redaction(fields={"output": True, "messages": ["role"], "error": False})
    assert resolve(own) == (own, {"output": None, "messages": frozenset({"role"})})
    assert Redaction(fields=["output"]).keep == {"output": None}
    assert Redaction(fields=[]).keep == {}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"kinds": "mail"}, "'mail'"),
        ({"kinds": ["email", "names"]}, "'names'"),
        ({"rules": ["x"]}, "(pattern, label)"),
        ({"rules": [("x", "Not A Label")]}, "'Not A Label'"),
        ({"rules": [("(", "x")]}, "no regular expression"),
        ({"rules": [("a*", "x")]}, "match neither nothing"),
        ({"rules": [("patient", "patient")]}, "its own label"),
        ({"rules": [(b"x", "x")]}, "for text"),
        ({"fields": "output"}, "'output'"),
        ({"fields": ["outputs"]}, "'outputs'"),
        ({"fields": {"attributes": "plan"}}, "'plan'"),
        ({"fields": {"output": ["x"]}}, "'output'"),
        ({"pseudonyms": "short"}, "at least 32"),
        ({"pseudonyms": b"x" * 44}, "at least 32"),
    ],
)
def test_what_cannot_work_is_a_config_error_at_once(options, word):
    """It names the option and the value."""
    with pytest.raises(ConfigError, match=re.escape(word)):
        Redaction(**options)


def test_neither_true_nor_a_function_is_a_config_error():
    """The message says what it takes."""
    with pytest.raises(ConfigError, match=r"evalpipe\.Redaction, not 'yes'"):
        resolve("yes")


# --- pseudonyms -------------------------------------------------------------------------------------------------------


def test_the_same_value_has_the_same_pseudonym_everywhere():
    """In a text, over texts and over processes that have the key; another kind or key has another."""
    own = Redaction(pseudonyms=KEY, rules=[(r"P-\d{4}", "patient")])
    one = own("a@b.io wrote to c@d.io, a@b.io answered P-1234")
    first, other, again, patient = re.findall(r"\[[^]]+\]", one)
    assert first == again != other
    assert own("to a@b.io") == f"to {first}"
    assert patient.startswith("[patient:")
    assert Redaction(pseudonyms=new_key())("to a@b.io") != f"to {first}"
    assert own(one) == one


def test_who_has_the_key_reveals_a_pseudonym_and_a_whole_text():
    """And what was no pseudonym, or of another key, stays."""
    own = Redaction(pseudonyms=KEY)
    text = own(TEXT) + " [email] " + Redaction(pseudonyms=new_key())("x@y.io")
    assert reveal_all(text, KEY).startswith(TEXT + " [email] [email:")
    assert reveal(own("a@b.io"), KEY) == reveal(own("a@b.io")[1:-1], KEY) == "a@b.io"


@given(st.text(min_size=1), st.sampled_from(["email", "card", "patient"]))
def test_revealing_is_the_inverse(value, kind):
    """Of any text, also of one that is longer than the cipher's block, or no valid Unicode."""
    assert reveal(pseudonymizer(KEY)(kind, value), KEY) == value


@given(st.data())
def test_a_pseudonym_that_was_changed_is_not_revealed(data):
    """Neither one character of it, nor its kind, nor its end."""
    token = pseudonymizer(KEY)("email", "somebody@example.com")
    at = data.draw(st.integers(1, len(token) - 2))
    character = data.draw(st.characters(codec="ascii").filter(lambda c: c != token[at]))
    with pytest.raises(ConfigError, match="no pseudonym"):
        reveal(token[:at] + character + token[at + 1 :], KEY)


@pytest.mark.parametrize("token", ["", "[email]", "[email:]", "[email:abc]", "[email:" + "A" * 30 + "]", "[email:é]"])
def test_what_is_no_pseudonym_is_a_config_error(token):
    """Also where the key is right."""
    with pytest.raises(ConfigError, match="no pseudonym"):
        reveal(token, KEY)


def test_keys_are_of_either_base64_and_at_least_32_bytes():
    """With or without padding."""
    raw = bytes(range(223, 255))
    one = pseudonymizer(base64.b64encode(raw).decode())("email", "a@b.io")
    assert pseudonymizer(base64.urlsafe_b64encode(raw).decode().rstrip("="))("email", "a@b.io") == one
    assert len(base64.urlsafe_b64decode(new_key())) == 32
    with pytest.raises(ConfigError, match="has 31"):
        pseudonymizer(base64.b64encode(raw[1:]).decode())
