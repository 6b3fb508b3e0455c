"""One Ray session for all modules here, with the toys importable by every worker."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

if TYPE_CHECKING:
    from proxy import BadProxy

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


_SHARED: dict[str, str] = {}  # the address of the session that the last module left behind


@pytest.fixture(scope="session")
def proxy() -> Iterator[BadProxy]:
    """What a store will stand behind: test_s3.py brings the store."""
    from proxy import BadProxy

    found = BadProxy()
    yield found
    found.close()


@pytest.fixture(scope="session")
def credentials(proxy: BadProxy) -> dict[str, str]:
    """For the store behind the proxy, in the environment as a user has them."""
    return {
        "AWS_ACCESS_KEY_ID": "test-id",
        "AWS_SECRET_ACCESS_KEY": "secret-never-written",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": proxy.url,
    }


@pytest.fixture(scope="module")
def cluster(credentials: dict[str, str]) -> Iterator[str]:
    """A Ray session of two CPUs; gives the address that other drivers can join.

    Starting one takes longer than most tests, so the next module that wants one finds it. A module that starts
    another of its own shuts this one down first. Its workers have the credentials in their environment.
    """
    import driving
    import ray

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", driving.PATH)
        address = ray.get_runtime_context().gcs_address if ray.is_initialized() else None
        if address is None or address != _SHARED.get("address"):
            ray.shutdown()
            with pytest.MonkeyPatch.context() as at_start:
                for name, value in credentials.items():
                    at_start.setenv(name, value)
                quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
                context = driving.patiently(lambda: ray.init(address="local", num_cpus=2, **quiet))
            _SHARED["address"] = context.address_info["gcs_address"]
        yield _SHARED["address"]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver of this process does not wait before it tries again: many tests kill again and again."""
    for name in ("failures._FIRST_BACKOFF_S", "pool._RESTART_S", "loop.TICK_S", "runner.TICK_S"):
        monkeypatch.setattr(f"pipeline.{name}", 0.05)


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path | str], pa.Table]:
    """All rows of a toy run's measuring step."""
    import driving

    return driving.rows_of


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What 200 toy rows are when nothing goes wrong: computed by one worker in this process, without Ray."""
    import driving
    from toys import toy_job

    return driving.undisturbed(tmp_path_factory.mktemp("undisturbed"), toy_job(200))


@pytest.fixture(scope="module")
def counts() -> Iterator[None]:
    """Says at the end how many inputs of each kind were tried."""
    from judging import told

    yield
    print(told())


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")
