"""What looks like a secret is not written down: not in run.json, not in events, errors and rows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

_SECRET = re.compile(
    r"(?i)(?<![a-z])(pass(word|wd|phrase)?|secrets?|tokens?|credentials?|api[-_]?key|access[-_]?key(?:[-_]?id)?|"
    r"private[-_]?key|account[-_]?key|signature|sig|sas|auth(orization)?|bearer)(?![a-z])"
)
_HIDDEN = "***"
# All of these take time in proportion to the text, however it is made.
_PASSWORD = re.compile(r"://[^/@:\s]*:[^/@\s]*@")
_USER = re.compile(r"://(?:[^/@\s'\"]*@)+")
_URL = re.compile(r"://[^\s'\"]*")
_PARAMETER = re.compile(r"([?&#;])([^=?&#;]+)=([^&#;]*)")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORDS = {
    *("password", "passwd", "pwd", "passphrase", "secret", "secrets", "token", "tokens", "credential", "credentials"),
    *("signature", "sig", "sas", "auth", "authorization", "bearer", "apikey", "jwt"),
}
_SECRET_KEYS = {"api", "access", "private", "account", "secret"}  # before "key"
_SIGNED = re.compile(r"(?i)x-(amz|goog)-.*|awsaccesskeyid|googleaccessid|key|code|policy|expires")
_SAS = {"se", "sp", "sv", "sr", "st", "sip", "spr", "ss", "srt", "skoid", "sktid", "skt", "ske", "sks", "skv"}
_PLAIN = {"none", "null", "true", "false", "yes", "no", "on", "off", "auto", "default", "basic", "anonymous", "env"}


def has_password(url: str) -> bool:
    """Whether a URL carries one. It would be written wherever the URL is: credentials come from the environment."""
    return bool(_PASSWORD.search(url))


def redact(argv: Sequence[str]) -> list[str]:
    """A command line with the values of options, settings and URLs that may be secrets replaced by ``***``."""
    shown: list[str] = []
    hide_next = False
    for word in argv:
        if hide_next and not word.startswith("--"):
            shown.append(_HIDDEN)
            hide_next = False
            continue
        hide_next = word.startswith("-") and "=" not in word and bool(_SECRET.search(word))
        shown.append(redact_text(word))
    return shown


def redact_text(text: str) -> str:
    """One word or URL: ``name=value`` with a telling name, what is secret in URLs, AWS key ids."""
    name, equals, _ = text.partition("=")
    if equals and "://" not in name and _SECRET.search(name):
        return f"{name}={_HIDDEN}"
    return re.sub(r"\b(AKIA|ASIA)[0-9A-Z]{12,}\b", _HIDDEN, redact_urls(text))


def redact_urls(text: str) -> str:
    """user:password@ and query parameters that sign or open something, in the URLs of a text, replaced by ``***``."""
    if "://" not in text:
        return text
    return _URL.sub(lambda url: _PARAMETER.sub(_parameter, url[0]), _USER.sub(f"://{_HIDDEN}@", text))


def _parameter(found: re.Match[str]) -> str:
    before, name, _ = found.groups()
    secret = name in _SAS or _SIGNED.fullmatch(name) or _is_secret(name)
    return f"{before}{name}={_HIDDEN}" if secret else found[0]


def _is_secret(name: str) -> bool:
    """Whether a name has a whole word of a secret kind, in snake, kebab or camel case; ``one_pass`` has none."""
    words = [word.lower() for word in _WORD.findall(name)]
    keys = any(a in _SECRET_KEYS and b in ("key", "keys") for a, b in itertools.pairwise(words))
    return keys or not _SECRET_WORDS.isdisjoint(words) or words == ["pass"]


def redact_values(value: Any) -> Any:
    """The same for a nested config, which is read back: texts under names of secrets are hidden, URLs are cleaned."""
    if isinstance(value, Mapping):
        return {k: _HIDDEN if _hides(str(k), v) else redact_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_values(v) for v in value]
    return redact_urls(value) if isinstance(value, str) else value


def _hides(name: str, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value.lower() not in _PLAIN and _is_secret(name)
