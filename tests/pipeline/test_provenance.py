"""What ran is told, secrets are not."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.provenance import config_digest, provenance
from pipeline.redaction import has_password, redact, redact_text, redact_urls, redact_values


def test_tells_versions_hardware_and_command_as_plain_json() -> None:
    found = json.loads(json.dumps(provenance({"gates": 100}, ["raylens", "chip", "c.yaml"])))
    assert found["versions"]["numpy"] == np.__version__
    assert {"torch", "torchvision", "ray", "pyarrow"} <= set(found["versions"])
    assert found["argv"] == ["raylens", "chip", "c.yaml"]
    assert found["cpus"] >= 1
    assert found["cpu"]
    assert isinstance(found["gpus"], list)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["at"])).total_seconds()) < 60


def test_commit_of_a_checkout_is_told() -> None:
    root = Path(__file__).resolve().parents[2]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("this is no git checkout")
    assert provenance()["commit"].rstrip("+") == head.stdout.strip()


def test_nothing_heavy_is_imported_for_it() -> None:
    code = "import sys, pipeline.provenance as p; p.provenance(); print({'torch', 'ray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_environment_is_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    assert "wJalrXUtnFEMI" not in json.dumps(provenance({"a": 1}))


def test_config_digest_knows_values_not_order() -> None:
    assert config_digest({"a": 1, "b": [1, 2]}) == config_digest({"b": [1, 2], "a": 1})
    assert config_digest({"a": 1}) != config_digest({"a": 2})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--password", "hunter2", "--run", "x"], ["--password", "***", "--run", "x"]),
        (["--token=hunter2"], ["--token=***"]),
        (["--set", "storage.secret_key=hunter2"], ["--set", "storage.secret_key=***"]),
        (["--set", "sweep.gates=100"], ["--set", "sweep.gates=100"]),
        (["s3://user:hunter2@host/bucket"], ["s3://***@host/bucket"]),
        (["https://h/w.pth?X-Amz-Signature=hunter2"], ["https://h/w.pth?X-Amz-Signature=***"]),
        (["weights=https://u:hunter2@h/w.pth?sig=hunter2"], ["weights=https://***@h/w.pth?sig=***"]),
        (["AKIAIOSFODNN7EXAMPLE"], ["***"]),
        (["--api-key", "--verbose"], ["--api-key", "--verbose"]),
        (["tokens.yaml", "compass", "author=me"], ["tokens.yaml", "compass", "author=me"]),
    ],
)
def test_command_line_without_secrets(given: list[str], kept: list[str]) -> None:
    assert redact(given) == kept


def test_config_without_secrets() -> None:
    config = {"weights": "https://h/w?sig=1", "auth": {"token": "abc"}, "classes": ["token"], "gates": 100}
    assert redact_values(config) == {
        "weights": "https://h/w?sig=***",
        "auth": {"token": "***"},
        "classes": ["token"],
        "gates": 100,
    }
    assert redact_text("plain text, a=b") == "plain text, a=b"


def test_what_is_no_secret_stays_as_a_config_is_read_back() -> None:
    plain = {"auth": "none", "one_pass": "x", "tokens": 7, "compass": "n", "key": "a", "access": "b", "sigma": "c"}
    urls = {"a": "https://h/w?v=1", "b": "https://h/w?v=2&design=x", "c": "a token=b, no address", "d": "s3://b/x@y"}
    given = {**plain, **urls}
    assert redact_values(given) == given
    secret = dict.fromkeys(("password", "db_password", "api-key", "accessKey", "sessionToken", "pass"), "x")
    assert set(redact_values(secret).values()) == {"***"}


@pytest.mark.parametrize(
    "name",
    ["token", "access_token", "key", "sig", "Signature", "X-Amz-Credential", "X-Goog-Expires", "AWSAccessKeyId", "sv"],
)
def test_a_parameter_that_opens_something_is_hidden_and_the_others_stay(name: str) -> None:
    url = f"GET 'https://u:hunter2@h/w?v=1&{name}=hunter2&w=2' and simplecache::https://h/w?{name}=hunter2 failed"
    found = f"GET 'https://***@h/w?v=1&{name}=***&w=2' and simplecache::https://h/w?{name}=*** failed"
    assert redact_urls(url) == found


@pytest.mark.parametrize("part", ["a", "a.", ":", "@", "?a", "&", "=", "://", "://a:", "://@", "a://b:c?"])
def test_a_long_text_takes_no_long_time(part: str) -> None:
    """In proportion to its length; what takes its square takes minutes here, and the test's time is up."""
    text = part * (100_000 // len(part)) + "s3://x?sig=y"
    assert "sig=y" not in redact_urls(text)
    has_password(text)
